/* The student's forward pass for one CPU thread: what the graphs say, in one call and without padding.
 *
 * At batch 1 the graph of a look-up student is some twenty small nodes, and ONNX Runtime spends more time between them
 * than in them. Here a text is: row numbers, prefetch, int8 rows summed in float32, a product over neighbours,
 * pool, two products. Nothing is allocated: the caller gives the scratch, so a call can run on any thread.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && !defined(FIELDRUN_PORTABLE)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma")))
#endif
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 8, PANEL = 16, BLOCK = 32 };
typedef float v8 __attribute__((vector_size(32), aligned(4)));

/* A layer x @ weight + bias, weight (inputs, outputs) in float or in int8, for one row; `packed` are the same numbers in
 * float, in panels of 16 outputs, (panels, inputs, 16), the last filled with zeros, for several rows. output_scale (outputs) are the steps of the
 * sums of an int8 weight; input_scale is the step of an int8 input, 0 where the input is float. */
typedef struct {
    int32_t inputs, outputs;
    const float *weight, *packed;
    const int8_t *weight_q;
    const float *bias, *output_scale;
    float input_scale;
} layer;

typedef struct {
    int32_t shifts, blocks, width, kernel, left, right, mean;
    const int32_t *shift, *coef, *modulus, *base;
    const int8_t *table_q;
    const float *table_f, *table_scale, *score;
    float floor, share;
    layer mixer, hidden, output;
} network;

INLINE v8 load(const float *p) { return *(const v8 *)p; }

/* y (rows, panels * 16) = x @ weight for up to 4 rows of x, `ldx` apart, one panel at a time. */
INLINE void tile(const float *x, int32_t ldx, int32_t inputs, const float *w, float *y, int32_t ldy, int rows) {
    v8 low[4], high[4];
    for (int r = 0; r < rows; r++) low[r] = high[r] = (v8){0};
    for (int32_t k = 0; k < inputs; k++, w += PANEL) {
        v8 a = load(w), b = load(w + LANES);
        for (int r = 0; r < rows; r++) {
            float value = x[(int64_t)r * ldx + k];
            low[r] += a * value;
            high[r] += b * value;
        }
    }
    for (int r = 0; r < rows; r++) {
        *(v8 *)(y + (int64_t)r * ldy) = low[r];
        *(v8 *)(y + (int64_t)r * ldy + LANES) = high[r];
    }
}

#ifdef AVX2
/* y (64) = the columns from `w` on of an int8 weight's rows `at`, each times its input: eight sums in registers, one
 * cache line a row. Compilers widen int8 in more steps than this. */
AVX2 static void columns_64(const float *x, const int8_t *w, int32_t outputs, float *y, const int32_t *at, int32_t n) {
    __m256 sum[8];
    for (int q = 0; q < 8; q++) sum[q] = _mm256_setzero_ps();
    for (int32_t i = 0; i < n; i++) {
        const int8_t *row = w + (int64_t)at[i] * outputs;
        __m256 value = _mm256_broadcast_ss(x + at[i]);
        for (int q = 0; q < 8; q++) {
            __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(row + q * LANES)));
            sum[q] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(wide), value, sum[q]);
        }
    }
    for (int q = 0; q < 8; q++) _mm256_storeu_ps(y + q * LANES, sum[q]);
}
#endif

/* y (outputs) = x (inputs) @ weight for one row and its inputs that are not zero: after a ReLU half of them are. */
INLINE void one_row(const float *restrict x, const layer *l, float *restrict y, int32_t *restrict at, int avx2) {
    int32_t n = 0, outputs = l->outputs, done = 0;
    for (int32_t k = 0; k < l->inputs; k++) {
        at[n] = k;
        n += x[k] != 0;
    }
#ifdef AVX2
    if (avx2 && l->weight_q)
        for (; done + 64 <= outputs; done += 64) columns_64(x, l->weight_q + done, outputs, y + done, at, n);
#endif
    memset(y + done, 0, (outputs - done) * sizeof(float));
    for (int32_t i = 0; i < n; i++) {
        float value = x[at[i]];
        int64_t row = (int64_t)at[i] * outputs;
        if (l->weight_q)
            for (int32_t o = done; o < outputs; o++) y[o] += value * (float)l->weight_q[row + o];
        else
            for (int32_t o = done; o < outputs; o++) y[o] += value * l->weight[row + o];
    }
}

/* x (count) as the int8 steps of the layer's input, if it has an int8 input. */
INLINE void quantize(const layer *l, float *x, int64_t count) {
    if (l->input_scale == 0) return;
    for (int64_t i = 0; i < count; i++) {
        float q = rintf(x[i] / l->input_scale);
        x[i] = q < -128 ? -128 : q > 127 ? 127 : q;
    }
}

INLINE void finish(const layer *l, float *y, int relu) {
    for (int32_t i = 0; l->output_scale && i < l->outputs; i++) y[i] *= l->output_scale[i];
    for (int32_t i = 0; l->bias && i < l->outputs; i++) y[i] += l->bias[i];
    for (int32_t i = 0; relu && i < l->outputs; i++) y[i] = y[i] > 0 ? y[i] : 0;
}

INLINE int32_t padded(int32_t outputs) { return (outputs + PANEL - 1) / PANEL * PANEL; }

/* y (rows, outputs rounded up to 16) = layer(x). The rows of x may overlap: they are `ldx` apart and `inputs` long. */
INLINE void several(const layer *l, float *x, int32_t ldx, int32_t rows, float *y, int relu) {
    int32_t ldy = padded(l->outputs), panels = ldy / PANEL;
    quantize(l, x, (int64_t)rows * ldx);
    for (int32_t r = 0; r < rows; r += 4)
        for (int32_t p = 0; p < panels; p++) {
            const float *from = x + (int64_t)r * ldx, *w = l->packed + (int64_t)p * l->inputs * PANEL;
            float *to = y + (int64_t)r * ldy + p * PANEL;
            switch (rows - r) {
            case 1: tile(from, ldx, l->inputs, w, to, ldy, 1); break;
            case 2: tile(from, ldx, l->inputs, w, to, ldy, 2); break;
            case 3: tile(from, ldx, l->inputs, w, to, ldy, 3); break;
            default: tile(from, ldx, l->inputs, w, to, ldy, 4);
            }
        }
    for (int32_t r = 0; r < rows; r++) finish(l, y + (int64_t)r * ldy, relu);
}

/* y (outputs) = layer(x), its weight as it is; x may be overwritten. */
INLINE void dense(const layer *l, float *x, float *y, int32_t *at, int relu, int avx2) {
    quantize(l, x, l->inputs);
    one_row(x, l, y, at, avx2);
    finish(l, y, relu);
}

/* h (width) = relu of the sum of one position's rows. Plain loops over a fixed block: compilers make vectors of them,
 * which they do not of a conversion from a vector of int8. */
INLINE void look_up(const network *net, const uint32_t *rows, float *h) {
    int32_t width = net->width;
    for (int32_t start = 0; start < width; start += BLOCK) {
        int32_t n = width - start < BLOCK ? width - start : BLOCK;
        float sum[BLOCK] = {0};
        for (int32_t j = 0; j < net->blocks; j++) {
            int64_t at = (int64_t)rows[j] * width + start;
            float scale = net->table_scale[rows[j]];
            if (!net->table_q)
                for (int32_t i = 0; i < n; i++) sum[i] += scale * net->table_f[at + i];
            else if (n == BLOCK)
                for (int32_t i = 0; i < BLOCK; i++) sum[i] += scale * (float)net->table_q[at + i];
            else
                for (int32_t i = 0; i < n; i++) sum[i] += scale * (float)net->table_q[at + i];
        }
        for (int32_t i = 0; i < n; i++) h[start + i] = sum[i] > 0 ? sum[i] : 0;
    }
}

/* pooled = [weighted mean; maximum] of g (steps, ldg), of which the first n columns count. */
INLINE void pool(const network *net, const float *g, int32_t steps, int32_t n, int32_t ldg, float *pooled) {
    float *largest = pooled + (net->mean ? n : 0);
    memcpy(largest, g, n * sizeof(float));
    for (int32_t s = 1; s < steps; s++)
        for (int32_t i = 0; i < n; i++) {
            float value = g[(int64_t)s * ldg + i];
            largest[i] = value > largest[i] ? value : largest[i];
        }
    if (!net->mean) return;
    float total = 0;
    memset(pooled, 0, n * sizeof(float));
    for (int32_t s = 0; s < steps; s++) {
        const float *from = g + (int64_t)s * ldg;
        v8 sums = {0};
        int32_t i = 0;
        for (; i + LANES <= n; i += LANES) sums += load(from + i) * load(net->score + i);
        float a = 0;
        for (int q = 0; q < LANES; q++) a += sums[q];
        for (; i < n; i++) a += from[i] * net->score[i];
        total += a;
        for (i = 0; i < n; i++) pooled[i] += a * from[i];
    }
    float share = (total + net->floor) * net->share;
    for (int32_t i = 0; i < n; i++) pooled[i] /= share;
}

/* The floats and the integers of scratch that `batch` texts of `length` tokens need. */
int64_t fieldrun_scratch(const network *net, int32_t batch, int32_t length, int64_t *integers) {
    int64_t wide = 0;
    const layer *layers[] = {&net->mixer, &net->hidden, &net->output};
    for (int i = 0; i < 3; i++) wide += layers[i]->inputs + layers[i]->outputs + 2 * PANEL;
    *integers = (int64_t)length * net->blocks + wide;
    int64_t positions = (int64_t)(length + net->kernel) * net->width;
    return positions + (int64_t)length * (net->mixer.outputs + PANEL) + batch * (2 * net->width + wide);
}

/* pooled (2 n or n) of the `tokens` of a text, whose ids start at `text`. */
INLINE void encode(const network *net, const int32_t *text, int32_t tokens, float *pooled, float *h, uint32_t *rows) {
    int32_t blocks = net->blocks, width = net->width;
    for (int32_t t = 0; t < tokens; t++)
        for (int32_t j = 0; j < blocks; j++) {
            uint32_t hash = 0; /* unsigned: a row is within its block whatever the ids are */
            for (int32_t s = 0; s < net->shifts; s++)
                hash += (uint32_t)text[t + net->shift[s]] * (uint32_t)net->coef[s * blocks + j];
            uint32_t found = hash % (uint32_t)net->modulus[j] + (uint32_t)net->base[j];
            rows[t * blocks + j] = found;
            __builtin_prefetch(net->table_scale + found);
            if (net->table_q)
                for (int32_t c = 0; c < width; c += 64) __builtin_prefetch(net->table_q + (int64_t)found * width + c);
        }
    for (int32_t t = 0; t < tokens; t++) look_up(net, rows + t * blocks, h + (int64_t)t * width);
    if (!net->mixer.outputs) {
        pool(net, h, tokens, width, width, pooled);
        return;
    }
    memset(h + (int64_t)tokens * width, 0, (int64_t)(net->kernel - 1) * width * sizeof(float));
    float *g = h + (int64_t)(tokens + net->kernel - 1) * width;
    several(&net->mixer, h, width, tokens, g, 1);
    pool(net, g, tokens, net->mixer.outputs, padded(net->mixer.outputs), pooled);
}

INLINE int run(const network *net, const int32_t *ids, int32_t batch, int32_t framed, float *output, float *floats,
               uint32_t *integers, int avx2) {
    int32_t length = framed - net->left - net->right;
    const layer *hidden = &net->hidden, *last = &net->output;
    int32_t n = hidden->outputs ? hidden->inputs : last->inputs;
    int32_t *at = (int32_t *)(integers + (int64_t)length * net->blocks);
    float *pooled = floats, *next = pooled + (int64_t)batch * n;
    float *h = next + (int64_t)batch * (hidden->outputs ? padded(hidden->outputs) : 0);
    for (int32_t row = 0; row < batch; row++) {
        const int32_t *text = ids + (int64_t)row * framed + net->left;
        int32_t tokens = length;
        while (tokens > 0 && text[tokens - 1] == 0) tokens--;
        if (tokens < 1) return 1;
        encode(net, text, tokens, pooled + (int64_t)row * n, h, integers);
    }
    if (batch == 1) {
        if (hidden->outputs) {
            dense(hidden, pooled, next, at, 1, avx2);
            pooled = next;
        }
        dense(last, pooled, output, at, 0, avx2);
        return 0;
    }
    if (hidden->outputs) { /* a batch reads a matrix once for four texts */
        several(hidden, pooled, n, batch, next, 1);
        pooled = next;
        n = padded(hidden->outputs);
    }
    several(last, pooled, n, batch, h, 0);
    for (int32_t row = 0; row < batch; row++)
        memcpy(output + (int64_t)row * last->outputs, h + (int64_t)row * padded(last->outputs), last->outputs * sizeof(float));
    return 0;
}

#define ARGUMENTS net, ids, batch, framed, output, floats, integers
#define PARAMETERS                                                                                                    \
    const network *net, const int32_t *ids, int32_t batch, int32_t framed, float *output, float *floats,              \
        uint32_t *integers

#ifdef AVX2 /* compiled for any x86-64 and for those of the last ten years; the processor chooses */
AVX2 static int run_avx2(PARAMETERS) { return run(ARGUMENTS, 1); }
static int run_plain(PARAMETERS) { return run(ARGUMENTS, 0); }
#endif

/* output (batch, outputs) of ids (batch, framed), each row a text after `left` positions of padding; 0 on success. */
int fieldrun_run(PARAMETERS) {
#ifdef AVX2
    int fast = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return fast ? run_avx2(ARGUMENTS) : run_plain(ARGUMENTS);
#else
    return run(ARGUMENTS, 0);
#endif
}
