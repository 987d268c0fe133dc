/* The picture of CarRacing in one call, with the very integers of pygame-ce 2.5.8 (gfxdraw, draw, transform).

   The picture is painted on 1000 x 800 pixels, turned upside down, its last 100 rows replaced by the instruments, and
   shrunk to 96 x 96: first along the rows, then along the columns. Shrinking a row gathers about ten pixels into one;
   the pixels that first count for one output pixel are a cell. A row is 96 cells, and a cell is either one colour or
   mixed. Only the mixed ones, about one in ten, exist as pixels: filling a long span writes one word for each cell.

       row of 1000 pixels    |. . . . . . . . . .|. . . . . . . . . . .|. . .      the last pixel of a cell is shared:
       cells                 |    0: green       |       1: mixed      |           it also counts for the next output

   Colours are numbers 0x00BBGGRR. `car_canvas.py` compares all this with pygame before it is used.
*/
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define W 1000      /* the canvas */
#define H 800
#define HUD 100     /* its first rows, hidden by the instruments once the picture is turned upside down */
#define VIEW (H - HUD)
#define SIDE 96     /* of the picture that comes out */
#define LANES (3 * SIDE)
#define MIXED 0xFF000000u
#define FARTHEST 16383  /* coordinates up to here keep every product below within 32 bits */
#define MOST_CORNERS 16
#define ONE 0x4000      /* a whole pixel in the fixed point arithmetic of smoothscale's SSE2 code */

/* How a line of `n` pixels is shrunk to SIDE: output j takes its whole pixels first[j] .. last[j] - 1, the share
   head[j] of pixel last[j], and the rest of pixel last[j - 1], which is tail[j]. */
typedef struct {
    int first[SIDE], last[SIDE];
    uint16_t head[SIDE], tail[SIDE];
    uint16_t reciprocal;
} Shrink;

static Shrink across, down;
static uint8_t cell_of[W];
static uint16_t lane_count[LANES], lane_head[LANES], lane_tail[LANES]; /* `across`, for red, green, blue in turn */

static void plan(Shrink *s, int n)
{
    int space = ONE * n / SIDE, left = space, j = 0, begin = 0;
    uint16_t rest = 0;
    for (int x = 0; x < n && j < SIDE; x++) {
        if (left > ONE) {
            left -= ONE;
            continue;
        }
        s->first[j] = begin, s->last[j] = x, s->head[j] = (uint16_t)left, s->tail[j] = rest;
        rest = (uint16_t)(ONE - left);
        left += space - ONE;
        begin = x + 1;
        j++;
    }
    s->reciprocal = (uint16_t)(0x40000000 / space);
}

/* ------------------------------------------------------------------------------------------------ pixels and spans */

typedef struct {
    uint32_t *cells;  /* (VIEW, SIDE): a colour, or MIXED */
    uint32_t *pixels; /* (VIEW, W): valid where the cell is mixed */
} Canvas;

/* Makes cell `c` of `row` mixed, and returns the row's pixels. */
static inline uint32_t *mix(const Canvas *to, int row, int c)
{
    uint32_t *cell = to->cells + row * SIDE + c, *pixels = to->pixels + row * W, color = *cell;
    if (color != MIXED) {
        for (int x = across.first[c]; x <= across.last[c]; x++)
            pixels[x] = color;
        *cell = MIXED;
    }
    return pixels;
}

static void part_of_cell(const Canvas *to, int row, int c, int x1, int x2, uint32_t color)
{
    if (to->cells[row * SIDE + c] == color)
        return;
    uint32_t *pixels = mix(to, row, c);
    for (int x = x1; x <= x2; x++)
        pixels[x] = color;
}

/* Pixels x1 to x2, both included and in any order, of canvas row y. */
static inline void span(const Canvas *to, int x1, int x2, int y, uint32_t color)
{
    if (x1 > x2) {
        int x = x1;
        x1 = x2, x2 = x;
    }
    if (y < HUD || y >= H || x2 < 0 || x1 >= W)
        return;
    int row = y - HUD;
    x1 = x1 < 0 ? 0 : x1, x2 = x2 >= W ? W - 1 : x2;
    int c1 = cell_of[x1], c2 = cell_of[x2];
    if (x1 > across.first[c1]) {
        part_of_cell(to, row, c1, x1, c1 == c2 ? x2 : across.last[c1], color);
        c1++;
    }
    if (c1 <= c2 && x2 < across.last[c2]) {
        part_of_cell(to, row, c2, c1 == c2 ? x1 : across.first[c2], x2, color);
        c2--;
    }
    uint32_t *cells = to->cells + row * SIDE;
    for (int c = c1; c <= c2; c++)
        cells[c] = color;
}

/* One pixel of a smooth line: every channel d becomes d + floor((c - d) * alpha / 256), where alpha is `weight` of
   255 parts, rounded down. Two channels share a product: each needs no more than 16 bits. */
static inline void blend(const Canvas *to, int x, int y, uint32_t color, uint32_t weight)
{
    uint32_t alpha = 255 * weight >> 8;
    if (alpha == 0 || x < 0 || x >= W || y < HUD || y >= H)
        return;
    int row = y - HUD, c = cell_of[x];
    if (to->cells[row * SIDE + c] == color)
        return; /* (c - c) * alpha is nothing */
    uint32_t *pixel = mix(to, row, c) + x, old = *pixel, rest = 256 - alpha, pair = 0x00FF00FF;
    uint32_t red_blue = ((color & pair) * alpha + (old & pair) * rest) >> 8 & pair;
    uint32_t green = ((color >> 8 & pair) * alpha + (old >> 8 & pair) * rest) & (pair << 8);
    *pixel = (red_blue | green) & 0x00FFFFFF;
}

/* ---------------------------------------------------------------------------------- gfxdraw: outline, then filling */

static int outside(int x, int y)
{
    return (x < 0 ? 1 : x >= W ? 2 : 0) | (y < 0 ? 4 : y >= H ? 8 : 0);
}

/* Cuts a line to the whole canvas, hidden rows included, and says whether anything is left. The slope is single
   precision, every cut truncates towards zero, and the ends may change places: all three show in the pixels. */
static int clip(int *x1, int *y1, int *x2, int *y2)
{
    for (int turn = 0; turn < 16; turn++) { /* four cuts are the most */
        int code1 = outside(*x1, *y1), code2 = outside(*x2, *y2);
        if (!(code1 | code2))
            return 1;
        if (code1 & code2)
            return 0;
        if (!code1) {
            int x = *x1, y = *y1;
            *x1 = *x2, *y1 = *y2, *x2 = x, *y2 = y;
            code1 = code2;
        }
        float slope = *x2 != *x1 ? (float)(*y2 - *y1) / (float)(*x2 - *x1) : 1.0f;
        if (code1 & 3) {
            int edge = code1 & 1 ? 0 : W - 1;
            *y1 += (int)((float)(edge - *x1) * slope);
            *x1 = edge;
        } else {
            int edge = code1 & 8 ? H - 1 : 0;
            if (*x2 != *x1)
                *x1 += (int)((float)(edge - *y1) / slope);
            *y1 = edge;
        }
    }
    return 0;
}

/* An anti-aliased line from its first end up to, without, its last. Steps run downwards along the longer axis; the
   position on the other is a multiple of a slope in 16.16 fixed point, whose fraction's upper byte is the weight. */
static void smooth_line(const Canvas *to, int x1, int y1, int x2, int y2, uint32_t color)
{
    if (!clip(&x1, &y1, &x2, &y2))
        return;
    int down_first = y1 <= y2, x = down_first ? x1 : x2, y = down_first ? y1 : y2;
    int dx = down_first ? x2 - x1 : x1 - x2, dy = down_first ? y2 - y1 : y1 - y2;
    if (dy == 0) {
        span(to, x, x + dx, y, color);
        return;
    }
    if (dx == 0) {
        for (int row = y; row <= y + dy; row++)
            span(to, x, x, row, color);
        return;
    }
    int step = dx > 0 ? 1 : -1;
    dx *= step;
    span(to, x1, x1, y1, color);
    if (dy > dx) {
        uint32_t slope = (uint32_t)(dx << 16) / dy, at = slope;
        for (int k = 1; k < dy; k++, at += slope) {
            int here = x + step * (int)(at >> 16);
            uint32_t weight = at >> 8 & 255;
            blend(to, here, y + k, color, 255 - weight);
            blend(to, here + step, y + k, color, weight);
        }
    } else {
        uint32_t slope = (uint32_t)(dy << 16) / dx, at = slope;
        for (int k = 1; k < dx; k++, at += slope) {
            int here = y + (int)(at >> 16);
            uint32_t weight = at >> 8 & 255;
            blend(to, x + step * k, here, color, 255 - weight);
            blend(to, x + step * k, here + 1, color, weight);
        }
    }
}

static void sort(int *values, int n)
{
    for (int i = 1; i < n; i++)
        for (int j = i; j > 0 && values[j - 1] > values[j]; j--) {
            int value = values[j];
            values[j] = values[j - 1], values[j - 1] = value;
        }
}

static void lowest_highest(const int32_t *p, int n, int *low, int *high)
{
    *low = *high = p[1];
    for (int i = 1; i < n; i++) {
        int y = p[2 * i + 1];
        *low = y < *low ? y : *low, *high = y > *high ? y : *high;
    }
}

/* The ends of edge i (from corner i - 1 to corner i), the upper one first; 0 for a level edge. */
static int edge(const int32_t *p, int n, int i, int *x1, int *y1, int *x2, int *y2)
{
    const int32_t *a = p + 2 * (i ? i - 1 : n - 1), *b = p + 2 * i, *upper = a[1] < b[1] ? a : b;
    const int32_t *lower = upper == a ? b : a;
    *x1 = upper[0], *y1 = upper[1], *x2 = lower[0], *y2 = lower[1];
    return a[1] != b[1];
}

/* A quadrilateral filled between its edges, whose positions are 16.16 fixed point: half a pixel rounds up at both ends
   of a span, which is narrowed by 1 / 65536 on either side before. Rows belong to an edge from its upper end up to,
   without, its lower end; only the polygon's last row belongs to those that end there. */
static void fill(const Canvas *to, const int32_t *p, uint32_t color)
{
    int low, high, x1, y1, x2, y2, crossings[VIEW][4];
    uint8_t counts[VIEW];
    lowest_highest(p, 4, &low, &high);
    int from = low < HUD ? HUD : low, until = high < H ? high + 1 : H;
    if (from >= until)
        return;
    memset(counts + from - HUD, 0, until - from);
    for (int i = 0; i < 4; i++) {
        if (!edge(p, 4, i, &x1, &y1, &x2, &y2))
            continue;
        int end = y2 == high ? y2 + 1 : y2;
        for (int y = y1 < HUD ? HUD : y1; y < end && y < H; y++)
            crossings[y - HUD][counts[y - HUD]++] = 65536 * (y - y1) / (y2 - y1) * (x2 - x1) + 65536 * x1;
    }
    for (int y = from; y < until; y++) {
        int *row = crossings[y - HUD], count = counts[y - HUD];
        sort(row, count);
        for (int i = 0; i + 1 < count; i += 2)
            span(to, (row[i] + 1 + 32768) >> 16, (row[i + 1] - 1 + 32768) >> 16, y, color);
    }
}

/* ---------------------------------------------------------------------------------------------------- pygame.draw */

/* A filled polygon of at least four corners. Edges are crossed in single precision; the first crossing of a pair, in
   the order of the corners, is rounded down and the second up. Level edges inside are drawn once more. */
static void polygon(const Canvas *to, const int32_t *p, int n, uint32_t color)
{
    int low, high, x1, y1, x2, y2, crossings[MOST_CORNERS];
    lowest_highest(p, n, &low, &high);
    if (low == high) {
        int left = p[0], right = p[0];
        for (int i = 1; i < n; i++)
            left = p[2 * i] < left ? p[2 * i] : left, right = p[2 * i] > right ? p[2 * i] : right;
        span(to, left, right, low, color);
        return;
    }
    for (int y = low < HUD ? HUD : low; y <= high && y < H; y++) {
        int count = 0;
        for (int i = 0; i < n; i++) {
            if (!edge(p, n, i, &x1, &y1, &x2, &y2) || y < y1 || !(y < y2 || (y == high && y2 == high)))
                continue;
            float at = (float)((y - y1) * (x2 - x1)) / (float)(y2 - y1);
            crossings[count] = (int)(count % 2 ? ceilf(at) : floorf(at)) + x1;
            count++;
        }
        sort(crossings, count);
        for (int i = 0; i + 1 < count; i += 2)
            span(to, crossings[i], crossings[i + 1], y, color);
    }
    for (int i = 0; i < n; i++) {
        const int32_t *a = p + 2 * (i ? i - 1 : n - 1), *b = p + 2 * i;
        if (a[1] == b[1] && low < b[1] && b[1] < high)
            span(to, a[0], b[0], b[1], color);
    }
}

/* ------------------------------------------------------------------------------------------- transform.smoothscale */

#define HIGH(a, b) ((uint16_t)((uint32_t)(uint16_t)(a) * (uint16_t)(b) >> 16)) /* the upper half of a 16 bit product */

/* One row of cells to SIDE pixels: `out` holds all reds, all greens, all blues. */
static void shrink_row(const Canvas *from, int row, uint16_t *restrict out)
{
    const uint32_t *cells = from->cells + row * SIDE, *pixels = from->pixels + row * W;
    uint16_t whole[LANES], shared[LANES + 1] = {0}, *last = shared + 1; /* last[-1] is no pixel: its share is 0 */
    for (int c = 0; c < SIDE; c++) {
        last[c] = cells[c] & 255, last[SIDE + c] = cells[c] >> 8 & 255, last[2 * SIDE + c] = cells[c] >> 16 & 255;
    }
    for (int i = 0; i < LANES; i++)
        whole[i] = last[i] * lane_count[i];
    for (int c = 0; c < SIDE; c++) {
        if (cells[c] != MIXED)
            continue;
        uint32_t red_blue = 0, green = 0, edge = pixels[across.last[c]];
        for (int x = across.first[c]; x < across.last[c]; x++)
            red_blue += pixels[x] & 0x00FF00FF, green += pixels[x] >> 8 & 255;
        whole[c] = red_blue & 0xFFFF, whole[SIDE + c] = green, whole[2 * SIDE + c] = red_blue >> 16;
        last[c] = edge & 255, last[SIDE + c] = edge >> 8 & 255, last[2 * SIDE + c] = edge >> 16 & 255;
    }
    for (int i = 0; i < LANES; i++) {
        uint16_t rest = HIGH(last[i - 1] << 2, lane_tail[i]);
        out[i] = HIGH(whole[i] + HIGH(last[i] << 2, lane_head[i]) + rest, across.reciprocal);
    }
}

/* The picture (SIDE, SIDE, 3) from the canvas, upside down, and the instruments (HUD, SIDE, 4) below it. */
static void shrink(const Canvas *from, const uint8_t *below, uint8_t *picture)
{
    uint16_t line[LANES], sum[LANES] = {0}, out[LANES];
    for (int j = 0, y = 0; j < SIDE; j++) {
        for (; y <= down.last[j]; y++) {
            if (y < VIEW)
                shrink_row(from, VIEW - 1 - y, line);
            else
                for (int x = 0; x < SIDE; x++, below += 4)
                    line[x] = below[0], line[SIDE + x] = below[1], line[2 * SIDE + x] = below[2];
            if (y < down.last[j])
                for (int i = 0; i < LANES; i++)
                    sum[i] += line[i];
        }
        uint16_t head = down.head[j], rest = ONE - head;
        for (int i = 0; i < LANES; i++) {
            out[i] = HIGH(sum[i] + HIGH(line[i] << 2, head), down.reciprocal);
            sum[i] = HIGH(line[i] << 2, rest);
        }
        for (int x = 0; x < SIDE; x++, picture += 3)
            picture[0] = (uint8_t)out[x], picture[1] = (uint8_t)out[SIDE + x], picture[2] = (uint8_t)out[2 * SIDE + x];
    }
}

/* ---------------------------------------------------------------------------------------------------------- Python */

static uint32_t color_of(const uint8_t *rgb)
{
    return rgb[0] | (uint32_t)rgb[1] << 8 | (uint32_t)rgb[2] << 16;
}

static void paint(const Canvas *to, uint32_t background, const int32_t *quads, const uint8_t *quad_colors,
                  Py_ssize_t n_quads, const int32_t *corners, const int32_t *counts, const uint8_t *shape_colors,
                  Py_ssize_t n_shapes)
{
    for (int i = 0; i < VIEW * SIDE; i++)
        to->cells[i] = background;
    for (Py_ssize_t k = 0; k < n_quads; k++, quads += 8) {
        uint32_t color = color_of(quad_colors + 3 * k);
        for (int i = 0; i < 4; i++) {
            const int32_t *a = quads + 2 * i, *b = quads + 2 * ((i + 1) % 4);
            smooth_line(to, a[0], a[1], b[0], b[1], color);
        }
        fill(to, quads, color);
    }
    for (Py_ssize_t k = 0; k < n_shapes; corners += 2 * counts[k], k++)
        polygon(to, corners, counts[k], color_of(shape_colors + 3 * k));
}

static int near_enough(const Py_buffer *points)
{
    const int32_t *values = points->buf;
    for (Py_ssize_t i = 0; i < points->len / 4; i++)
        if (values[i] < -FARTHEST || values[i] > FARTHEST)
            return 0;
    return 1;
}

#define SCRATCH (4 * VIEW * (SIDE + W))

/* Sets an exception and returns 0 unless the buffers fit together. */
static int check(const Py_buffer *scratch, const Py_buffer *background, const Py_buffer *quads,
                 const Py_buffer *quad_colors, const Py_buffer *corners, const Py_buffer *counts,
                 const Py_buffer *shape_colors, const Py_buffer *below, const Py_buffer *picture)
{
    Py_ssize_t shapes = counts->len / 4, total = 0;
    const Py_buffer *words[] = {scratch, quads, corners, counts};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)words[i]->buf % 4 != 0) {
            PyErr_SetString(PyExc_ValueError, "scratch, quads, corners and counts must be aligned to 4 bytes");
            return 0;
        }
    if (scratch->len < SCRATCH || background->len != 3 || below->len != 4 * HUD * SIDE
        || picture->len != 3 * SIDE * SIDE) {
        PyErr_SetString(PyExc_ValueError, "scratch, background, below or picture has the wrong size");
        return 0;
    }
    if (quads->len % 32 != 0 || quad_colors->len != 3 * (quads->len / 32)) {
        PyErr_SetString(PyExc_ValueError, "quads must be (N, 4, 2) int32 and their colours (N, 3) uint8");
        return 0;
    }
    if (counts->len % 4 != 0 || corners->len % 8 != 0 || shape_colors->len != 3 * shapes) {
        PyErr_SetString(PyExc_ValueError,
                        "corners must be (P, 2) int32, counts (M,) int32, and the shapes' colours (M, 3) uint8");
        return 0;
    }
    for (Py_ssize_t k = 0; k < shapes; k++) {
        int32_t count = ((const int32_t *)counts->buf)[k];
        if (count < 4 || count > MOST_CORNERS) { /* pygame has another algorithm for triangles */
            PyErr_Format(PyExc_NotImplementedError, "a shape must have 4 to %d corners, got %d", MOST_CORNERS,
                         (int)count);
            return 0;
        }
        total += count;
    }
    if (total != corners->len / 8) {
        PyErr_SetString(PyExc_ValueError, "the counts must add up to the number of corners");
        return 0;
    }
    if (!near_enough(quads) || !near_enough(corners)) {
        PyErr_Format(PyExc_OverflowError, "coordinates must lie within -%d and %d", FARTHEST, FARTHEST);
        return 0;
    }
    return 1;
}

PyDoc_STRVAR(draw_doc,
"draw(scratch, background, quads, quad_colors, corners, counts, shape_colors, below, picture)\n--\n\n"
"Paints CarRacing's picture into `picture` (96, 96, 3) uint8. All arguments are C-contiguous buffers.\n\n"
"scratch: writable, SCRATCH bytes, aligned to 4. background: 3 bytes. quads (N, 4, 2) int32 in pixels of the canvas,\n"
"drawn first, as gfxdraw.aapolygon and then gfxdraw.filled_polygon do, in colours quad_colors (N, 3) uint8. Then\n"
"shapes as pygame.draw.polygon does: corners (P, 2) int32, counts (M,) int32 of 4 to 16 corners each, colours\n"
"shape_colors (M, 3) uint8. below (100, 96, 4) uint8: the instruments, shrunk along their rows already.\n\n"
"Raises ValueError for buffers that do not fit, OverflowError for coordinates beyond +-16383, NotImplementedError for\n"
"shapes with other numbers of corners.");

static PyObject *draw(PyObject *module, PyObject *arguments)
{
    Py_buffer b[9];
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(arguments, "w*y*y*y*y*y*y*y*w*:draw", b, b + 1, b + 2, b + 3, b + 4, b + 5, b + 6, b + 7,
                          b + 8))
        return NULL;
    if (check(b, b + 1, b + 2, b + 3, b + 4, b + 5, b + 6, b + 7, b + 8)) {
        Canvas canvas = {b[0].buf, (uint32_t *)b[0].buf + VIEW * SIDE};
        Py_BEGIN_ALLOW_THREADS
        paint(&canvas, color_of(b[1].buf), b[2].buf, b[3].buf, b[2].len / 32, b[4].buf, b[5].buf, b[6].buf,
              b[5].len / 4);
        shrink(&canvas, b[7].buf, b[8].buf);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    for (int i = 0; i < 9; i++)
        PyBuffer_Release(b + i);
    return result;
}

static PyMethodDef methods[] = {{"draw", draw, METH_VARARGS, draw_doc}, {NULL, NULL, 0, NULL}};

static int prepare(PyObject *module)
{
    plan(&across, W);
    plan(&down, H);
    for (int c = 0; c < SIDE; c++) {
        for (int x = across.first[c]; x <= across.last[c]; x++)
            cell_of[x] = (uint8_t)c;
        for (int channel = 0; channel < 3; channel++) {
            lane_count[channel * SIDE + c] = (uint16_t)(across.last[c] - across.first[c]);
            lane_head[channel * SIDE + c] = across.head[c];
            lane_tail[channel * SIDE + c] = across.tail[c];
        }
    }
    return PyModule_AddIntConstant(module, "SCRATCH", SCRATCH);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, prepare}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "worldmodel.envs._raster", "CarRacing's picture, painted and shrunk in C.", 0, methods,
    slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__raster(void)
{
    return PyModuleDef_Init(&definition);
}
