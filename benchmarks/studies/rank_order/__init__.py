"""Does the order of a codebook's values matter?"""
