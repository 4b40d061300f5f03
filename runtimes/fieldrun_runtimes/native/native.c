/* The student's forward pass on one CPU thread: what the graphs compute, in one call and without padding.
 *
 * At batch 1 the graph of a look-up student has some twenty small nodes, and ONNX Runtime spends more time between them
 * than in them. Here the steps of a text are: row numbers, prefetch, int8 rows summed in float32, a product over
 * neighbours, pool, two products. Nothing is allocated: the caller passes the scratch, so a call can run on any thread.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && !defined(FIELDRUN_PORTABLE)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx2,fma,prefer-vector-width=512")))
#endif
#define INLINE static inline __attribute__((always_inline))

/* The instruction sets that run is compiled for. All of them add in the same order, so the answers have the same bits
 * where a multiply-add is one instruction. */
enum level { PLAIN, WITH_AVX2, WITH_AVX512 };
enum { LANES = 8, PANEL = 16, BLOCK = 32, GROUP = 64, POSITIONS = 128 };
typedef float v4 __attribute__((vector_size(16), aligned(4)));
typedef float v8 __attribute__((vector_size(32), aligned(4)));
typedef float v16 __attribute__((vector_size(64), aligned(4)));

/* A layer x @ weight + bias. weight (inputs, outputs) is float or int8 and serves one row; `packed` has the same numbers
 * in float, in panels of 16 outputs, (panels, inputs, 16), the last filled with zeros, and serves several rows.
 * output_scale (outputs) has the steps of the sums of an int8 weight; input_scale is the step of an int8 input, 0 for a
 * float input. */
typedef struct {
    int32_t inputs, outputs;
    const float *weight, *packed;
    const int8_t *weight_q;
    const float *bias, *output_scale;
    float input_scale;
} layer;

/* Stored rows of `bytes` bytes each: codes of `bits` bits, from the lowest bit on. A code is the number of one of the
 * `entries` runs in `book`, of `run` numbers each. */
typedef struct {
    int32_t bits, entries, run, bytes;
    const uint8_t *codes;
    const int8_t *book;
} coded;

/* Rows `start` to `stop` of a packed table, plain or coded. In a split part a bit in `often` marks the rows that are in
 * `rows`; the others are in `rarely`. `before` counts the marked rows before every 64 rows. */
typedef struct {
    int64_t start, stop;
    const int8_t *plain;
    const uint8_t *often;
    const uint32_t *before;
    coded rows, rarely;
} part;

/* A packed table. A row is opened when a text first needs it. table_q and table_scale of the network have 2 `rows` slots:
 * the `used` opened rows are in the upper half in the order of their first use, so that rows in use lie together. `slot`
 * has the slot of each row plus one, 0 for a row that is not opened. */
typedef struct {
    int32_t rows, parts;
    const part *part;
    const float *scale;
    int32_t *slot, *used;
} packing;

typedef struct {
    int32_t shifts, blocks, width, kernel, left, right, mean;
    const int32_t *shift, *coef, *modulus, *base;
    int8_t *table_q;
    const float *table_f;
    float *table_scale;
    const float *score;
    const packing *packed;
    float floor, share;
    layer mixer, hidden, output;
} network;

INLINE v8 load(const float *p) { return *(const v8 *)p; }

/* y (rows, 16) = x @ w, a panel (inputs, 16), for a few rows of x that are `ldx` apart: the sums stay in registers.
 * A function of its own, so that the pointers stay in registers as well. */
#define TILE(name, vector, target, most)                                                                               \
    INLINE void name##_rows(const float *x, int32_t ldx, int32_t inputs, const float *w, float *y, int32_t ldy,        \
                            int rows) {                                                                                \
        enum { EACH = sizeof(vector) / sizeof(float), PARTS = PANEL / EACH };                                          \
        vector sum[most][PARTS];                                                                                       \
        for (int r = 0; r < rows; r++)                                                                                 \
            for (int q = 0; q < PARTS; q++) sum[r][q] = (vector){0};                                                   \
        for (int32_t k = 0; k < inputs; k++, w += PANEL)                                                               \
            for (int r = 0; r < rows; r++)                                                                             \
                for (int q = 0; q < PARTS; q++)                                                                        \
                    sum[r][q] += *(const vector *)(w + q * EACH) * x[(int64_t)r * ldx + k];                            \
        for (int r = 0; r < rows; r++)                                                                                 \
            for (int q = 0; q < PARTS; q++) *(vector *)(y + (int64_t)r * ldy + q * EACH) = sum[r][q];                  \
    }                                                                                                                  \
    target static __attribute__((noinline)) void name(const float *x, int32_t ldx, int32_t inputs, const float *w,     \
                                                      float *y, int32_t ldy, int rows) {                               \
        switch (rows) {                                                                                                \
        case 1: name##_rows(x, ldx, inputs, w, y, ldy, 1); break;                                                      \
        case 2: name##_rows(x, ldx, inputs, w, y, ldy, 2); break;                                                      \
        case 3: name##_rows(x, ldx, inputs, w, y, ldy, 3); break;                                                      \
        case 4: name##_rows(x, ldx, inputs, w, y, ldy, 4); break;                                                      \
        case 5: name##_rows(x, ldx, inputs, w, y, ldy, most < 5 ? 4 : 5); break;                                       \
        case 6: name##_rows(x, ldx, inputs, w, y, ldy, most < 6 ? 4 : 6); break;                                       \
        case 7: name##_rows(x, ldx, inputs, w, y, ldy, most < 7 ? 4 : 7); break;                                       \
        default: name##_rows(x, ldx, inputs, w, y, ldy, most);                                                         \
        }                                                                                                              \
    }
TILE(tile_4, v4, , 4)
#ifdef AVX2
TILE(tile_8, v8, AVX2, 6)
TILE(tile_16, v16, AVX512, 8)
#endif

/* The rows that a tile may have: as many as there are registers for their sums. */
INLINE int most_rows(enum level level) { return level == WITH_AVX512 ? 8 : level == WITH_AVX2 ? 6 : 4; }

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

/* The same for 128 columns in registers of 16 lanes. */
AVX512 static void columns_128(const float *x, const int8_t *w, int32_t outputs, float *y, const int32_t *at, int32_t n) {
    __m512 sum[8];
    for (int q = 0; q < 8; q++) sum[q] = _mm512_setzero_ps();
    for (int32_t i = 0; i < n; i++) {
        const int8_t *row = w + (int64_t)at[i] * outputs;
        __m512 value = _mm512_set1_ps(x[at[i]]);
        for (int q = 0; q < 8; q++) {
            __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(row + q * PANEL)));
            sum[q] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(wide), value, sum[q]);
        }
    }
    for (int q = 0; q < 8; q++) _mm512_storeu_ps(y + q * PANEL, sum[q]);
}
#endif

/* y (outputs) = x (inputs) @ weight for one row and its inputs that are not zero: after a ReLU half of them are. */
INLINE void one_row(const float *restrict x, const layer *l, float *restrict y, int32_t *restrict at, enum level level) {
    int32_t n = 0, outputs = l->outputs, done = 0;
    for (int32_t k = 0; k < l->inputs; k++) {
        at[n] = k;
        n += x[k] != 0;
    }
#ifdef AVX2
    if (level == WITH_AVX512 && l->weight_q)
        for (; done + 128 <= outputs; done += 128) columns_128(x, l->weight_q + done, outputs, y + done, at, n);
    if (level != PLAIN && l->weight_q)
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

/* y (rows, outputs rounded up to 16) = layer(x). The rows of x may overlap: they are `ldx` apart and `inputs` long. They
 * are cut evenly: a tile of one or two rows would wait for its sums. */
INLINE void several(const layer *l, float *x, int32_t ldx, int32_t rows, float *y, int relu, enum level level) {
    int32_t ldy = padded(l->outputs), panels = ldy / PANEL, most = most_rows(level);
    int32_t tiles = (rows + most - 1) / most;
    quantize(l, x, (int64_t)rows * ldx);
    for (int32_t i = 0, r = 0; i < tiles; i++) {
        int32_t n = (rows - r) / (tiles - i);
        for (int32_t p = 0; p < panels; p++) {
            const float *from = x + (int64_t)r * ldx, *w = l->packed + (int64_t)p * l->inputs * PANEL;
            float *to = y + (int64_t)r * ldy + p * PANEL;
#ifdef AVX2
            if (level == WITH_AVX512)
                tile_16(from, ldx, l->inputs, w, to, ldy, n);
            else if (level == WITH_AVX2)
                tile_8(from, ldx, l->inputs, w, to, ldy, n);
            else
#endif
                tile_4(from, ldx, l->inputs, w, to, ldy, n);
        }
        r += n;
    }
    for (int32_t r = 0; r < rows; r++) finish(l, y + (int64_t)r * ldy, relu);
}

/* y (outputs) = layer(x) for one row; x may be overwritten. */
INLINE void dense(const layer *l, float *x, float *y, int32_t *at, int relu, enum level level) {
    quantize(l, x, l->inputs);
    one_row(x, l, y, at, level);
    finish(l, y, relu);
}

/* out (width) = the row `number` of `from`. Returns 0, or 1 if a code exceeds the codebook. Eight codes take `bits` bytes,
 * and a row has a multiple of eight codes. */
INLINE int decode_as(const coded *from, int64_t number, int32_t width, int8_t *out, int32_t bits, int32_t run) {
    const uint8_t *next = from->codes + number * from->bytes;
    for (int32_t i = 0; i < width; i += 8 * run, next += bits) {
        int32_t n = (width - i + run - 1) / run;
        uint64_t eight = 0;
        for (int32_t byte = 0; byte < bits; byte++) eight |= (uint64_t)next[byte] << 8 * byte;
        for (int32_t k = 0; k < (n < 8 ? n : 8); k++) {
            int32_t code = eight >> k * bits & ((1u << bits) - 1), at = i + k * run;
            if (code >= from->entries) return 1;
            memcpy(out + at, from->book + code * run, width - at < run ? width - at : run);
        }
    }
    return 0;
}

static int decode(const coded *from, int64_t number, int32_t width, int8_t *out) {
    int whole = width % (8 * from->run) == 0; /* for the usual sizes all numbers are known to the compiler */
    if (whole && from->bits == 4 && from->run == 1) return decode_as(from, number, width / 8 * 8, out, 4, 1);
    if (whole && from->bits == 6 && from->run == 1) return decode_as(from, number, width / 8 * 8, out, 6, 1);
    if (whole && from->bits == 6 && from->run == 2) return decode_as(from, number, width / 16 * 16, out, 6, 2);
    if (whole && from->bits == 8 && from->run == 4) return decode_as(from, number, width / 32 * 32, out, 8, 4);
    if (whole && from->bits == 8 && from->run == 8) return decode_as(from, number, width / 64 * 64, out, 8, 8);
    return decode_as(from, number, width, out, from->bits, from->run);
}

static int read_row(const network *net, int64_t row, int8_t *out) {
    const part *p = net->packed->part;
    while (row >= p->stop) p++;
    int64_t number = row - p->start;
    if (p->plain) {
        memcpy(out, p->plain + number * net->width, net->width);
        return 0;
    }
    if (!p->often) return decode(&p->rows, number, net->width, out);
    int64_t ones = p->before[number / 64];
    for (int64_t byte = number / 64 * 8; byte < number / 8; byte++) ones += __builtin_popcount(p->often[byte]);
    ones += __builtin_popcount(p->often[number / 8] & ((1u << number % 8) - 1));
    int chosen = p->often[number / 8] >> number % 8 & 1;
    return decode(chosen ? &p->rows : &p->rarely, chosen ? ones : number - ones, net->width, out);
}

/* Open a row of a packed table and return its slot, -1 on failure. If two threads open the same row, the first to note
 * its slot wins and the slot of the other is lost. When all slots are used up, a row takes its own slot in the lower half,
 * where threads that write it at once write the same bytes. */
static __attribute__((noinline)) int32_t open_row(const network *net, int32_t row) {
    const packing *packed = net->packed;
    int32_t none = 0, slot = row, used = __atomic_load_n(packed->used, __ATOMIC_RELAXED);
    while (used < packed->rows && !__atomic_compare_exchange_n(packed->used, &used, used + 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
    if (used < packed->rows) slot = packed->rows + used;
    if (read_row(net, row, net->table_q + (int64_t)slot * net->width)) return -1;
    net->table_scale[slot] = packed->scale[row];
    if (__atomic_compare_exchange_n(packed->slot + row, &none, slot + 1, 0, __ATOMIC_RELEASE, __ATOMIC_ACQUIRE)) return slot;
    return none - 1;
}

/* h (width) = relu of the sum of one position's rows. The plain loops over a fixed block are vectorised by compilers, a
 * conversion from a vector of int8 is not. */
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

/* How many positions, of several texts, go through the mixer together. */
INLINE int32_t together(const network *net, int32_t longest) {
    return (longest > POSITIONS ? longest : POSITIONS) + net->kernel - 1;
}

/* The floats and the integers of scratch that a call on texts of at most `longest` tokens needs. */
int64_t fieldrun_scratch(const network *net, int32_t longest, int64_t *integers) {
    int64_t wide = 0, positions = together(net, longest);
    const layer *layers[] = {&net->mixer, &net->hidden, &net->output};
    for (int i = 0; i < 3; i++) wide += layers[i]->inputs + layers[i]->outputs + 2 * PANEL;
    *integers = (int64_t)longest * (net->blocks + 1) + net->left + net->right + wide;
    return positions * (net->width + net->mixer.outputs + PANEL) + GROUP * (2 * net->width + wide);
}

/* h (tokens, width) of a text: all row numbers first, so that the memory is prefetched before it is needed. Returns 0, or
 * 1 if a packed row cannot be opened. */
INLINE int encode(const network *net, const int32_t *text, int32_t tokens, float *h, uint32_t *rows) {
    int32_t blocks = net->blocks, width = net->width;
    for (int32_t t = 0; t < tokens; t++)
        for (int32_t j = 0; j < blocks; j++) {
            uint32_t hash = 0; /* unsigned: a row is within its block whatever the ids are */
            for (int32_t s = 0; s < net->shifts; s++)
                hash += (uint32_t)text[t + net->shift[s]] * (uint32_t)net->coef[s * blocks + j];
            uint32_t found = hash % (uint32_t)net->modulus[j] + (uint32_t)net->base[j];
            if (net->packed) {
                int32_t slot = __atomic_load_n(net->packed->slot + found, __ATOMIC_ACQUIRE) - 1;
                if (slot < 0 && (slot = open_row(net, (int32_t)found)) < 0) return 1;
                found = (uint32_t)slot;
            }
            rows[t * blocks + j] = found;
            __builtin_prefetch(net->table_scale + found);
            if (net->table_q)
                for (int32_t c = 0; c < width; c += 64) __builtin_prefetch(net->table_q + (int64_t)found * width + c);
        }
    for (int32_t t = 0; t < tokens; t++) look_up(net, rows + t * blocks, h + (int64_t)t * width);
    return 0;
}

/* pooled (n) of `texts` texts, whose h stand one after another with kernel - 1 rows of zeros after each. */
INLINE void mix(const network *net, float *h, const int32_t *tokens, int32_t texts, float *g, float *pooled, int32_t n,
                enum level level) {
    int32_t positions = 0, gap = net->kernel - 1, ldg = net->width;
    for (int32_t i = 0; i < texts; i++) positions += tokens[i] + gap;
    if (net->mixer.outputs) {
        several(&net->mixer, h, net->width, positions - gap, g, 1, level);
        ldg = padded(net->mixer.outputs);
    } else
        g = h;
    for (int32_t i = 0; i < texts; i++, pooled += n) {
        pool(net, g, tokens[i], net->mixer.outputs ? net->mixer.outputs : net->width, ldg, pooled);
        g += (int64_t)(tokens[i] + gap) * ldg;
    }
}

/* output (count, outputs) of the pooled vectors of up to GROUP texts; `next`, `logits` and `at` are scratch. */
INLINE void project(const network *net, float *pooled, int32_t count, float *output, float *next, float *logits,
                    int32_t *at, enum level level) {
    const layer *hidden = &net->hidden, *last = &net->output;
    int32_t n = hidden->outputs ? hidden->inputs : last->inputs;
    if (count == 1) {
        if (hidden->outputs) {
            dense(hidden, pooled, next, at, 1, level);
            pooled = next;
        }
        dense(last, pooled, output, at, 0, level);
        return;
    }
    if (hidden->outputs) { /* a matrix is read once for four to eight texts */
        several(hidden, pooled, n, count, next, 1, level);
        pooled = next;
        n = padded(hidden->outputs);
    }
    several(last, pooled, n, count, logits, 0, level);
    for (int32_t row = 0; row < count; row++)
        memcpy(output + (int64_t)row * last->outputs, logits + (int64_t)row * padded(last->outputs), last->outputs * sizeof(float));
}

/* See fieldrun_run. */
INLINE int run(const network *net, const int32_t *ids, const int64_t *starts, int32_t texts, int32_t longest,
               float *output, float *floats, uint32_t *integers, enum level level) {
    const layer *hidden = &net->hidden, *last = &net->output;
    int32_t n = hidden->outputs ? hidden->inputs : last->inputs, left = net->left, gap = net->kernel - 1;
    int32_t room = together(net, longest), tokens[GROUP];
    int32_t *at = (int32_t *)(integers + (int64_t)longest * net->blocks);
    int32_t *framed = at + (net->mixer.inputs + hidden->inputs + last->inputs);
    float *pooled = floats, *next = pooled + (int64_t)GROUP * n;
    float *logits = next + (int64_t)GROUP * (hidden->outputs ? padded(hidden->outputs) : 0);
    float *h = logits + (int64_t)GROUP * padded(last->outputs), *g = h + (int64_t)room * net->width;
    memset(framed, 0, left * sizeof(int32_t));
    for (int32_t first = 0; first < texts; first += GROUP) {
        int32_t count = texts - first < GROUP ? texts - first : GROUP, mixed = 0, used = 0;
        for (int32_t row = 0; row < count; row++) {
            const int32_t *text = ids + starts[first + row];
            int64_t length = starts[first + row + 1] - starts[first + row];
            while (length > 0 && text[length - 1] == 0) length--; /* padding */
            if (length < 1 || length > longest) return 1;
            tokens[row] = (int32_t)length;
            if (used + tokens[row] + gap > room) {
                mix(net, h, tokens + mixed, row - mixed, g, pooled + (int64_t)mixed * n, n, level);
                mixed = row;
                used = 0;
            }
            memcpy(framed + left, text, length * sizeof(int32_t));
            memset(framed + left + length, 0, net->right * sizeof(int32_t));
            if (encode(net, framed + left, tokens[row], h + (int64_t)used * net->width, integers)) return 2;
            used += tokens[row];
            memset(h + (int64_t)used * net->width, 0, (int64_t)gap * net->width * sizeof(float));
            used += gap;
        }
        mix(net, h, tokens + mixed, count - mixed, g, pooled + (int64_t)mixed * n, n, level);
        project(net, pooled, count, output + (int64_t)first * last->outputs, next, logits, at, level);
    }
    return 0;
}

#define ARGUMENTS net, ids, starts, texts, longest, output, floats, integers
#define PARAMETERS                                                                                                    \
    const network *net, const int32_t *ids, const int64_t *starts, int32_t texts, int32_t longest, float *output,     \
        float *floats, uint32_t *integers

#ifdef AVX2 /* for any x86-64, for those of the last ten years, and for the widest; chosen at run time */
AVX512 static int run_avx512(PARAMETERS) { return run(ARGUMENTS, WITH_AVX512); }
AVX2 static int run_avx2(PARAMETERS) { return run(ARGUMENTS, WITH_AVX2); }
static int run_plain(PARAMETERS) { return run(ARGUMENTS, PLAIN); }
#endif

/* output (texts, outputs) of texts whose ids start at ids[starts[i]] and end before ids[starts[i + 1]]; zeros at the end
 * of a text are padding. Returns 0, or 1 if a text has no token or more than `longest`, or 2 if a code of the packed
 * table exceeds its codebook. `widest` is the highest level that may be used. */
int fieldrun_run(PARAMETERS, int32_t widest) {
#ifdef AVX2
    __builtin_cpu_init();
    int fast = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int wide = fast && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (wide && widest >= WITH_AVX512) return run_avx512(ARGUMENTS);
    return fast && widest >= WITH_AVX2 ? run_avx2(ARGUMENTS) : run_plain(ARGUMENTS);
#else
    (void)widest;
    return run(ARGUMENTS, PLAIN);
#endif
}
