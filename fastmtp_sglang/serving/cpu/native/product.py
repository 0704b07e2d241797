"""The product of rows with packed weights.

A panel holds PANEL outputs' weights, input by input, so that one pass over it reads memory in order
and computes up to ROWS_AT_ONCE rows. Each output is one chain of multiply-adds in the order of its
inputs, whatever number of rows is computed beside it. bfloat16 rows by bfloat16 weights are
multiplied as they are where the processor does that: by tiles (AMX), or two inputs at a time
(AVX-512 BF16).
"""

from fastmtp_sglang.serving.cpu.native import tiles, vectors
from fastmtp_sglang.serving.cpu.native.compiled import helper, operator
from fastmtp_sglang.serving.cpu.native.emitter import MULTIPLIES_PAIRS, PANEL, ROWS_AT_ONCE
from fastmtp_sglang.serving.cpu.native.machine import floats, integers
from fastmtp_sglang.serving.cpu.native.passes import FIELDS
from fastmtp_sglang.serving.cpu.native.tiles import TILE_ROWS, tile_product

# How a product reads x: float32, pairs of bfloat16, tiles of bfloat16.
FLOATS, PAIRS, TILES = range(3)

_of_floats = vectors.panel_product(False, False)
_of_pairs = vectors.panel_product(False, True)
# Elsewhere never called: `Engine.product` widens the rows.
_by_pairs = vectors.panel_product(MULTIPLIES_PAIRS, True)


def way_to_read(inputs: int) -> int:
    """How rows of so many bfloat16 are multiplied by bfloat16 weights on this machine."""
    if tiles.allowed() and inputs % tiles.TILE_INPUTS == 0:
        return TILES
    return PAIRS if MULTIPLIES_PAIRS and inputs % 2 == 0 else FLOATS


@helper
def multiply(x, x_stride, reading, rows, panel, inputs, weights_bf16, out, out_stride):
    """Rows of x by one panel, in passes of nearly equal size."""
    most = TILE_ROWS if reading == TILES else ROWS_AT_ONCE
    passes = (rows + most - 1) // most
    row = 0
    for i in range(passes):
        n = (rows - row + passes - i - 1) // (passes - i)
        a = x + row * x_stride * (4 if reading == FLOATS else 2)
        o = out + row * out_stride * 4
        if reading == TILES:
            tile_product(n, a, x_stride, panel, inputs, o, out_stride)
        elif reading == PAIRS:
            _by_pairs(n, a, x_stride, panel, inputs, o, out_stride)
        elif weights_bf16:
            _of_pairs(n, a, x_stride, panel, inputs, o, out_stride)
        else:
            _of_floats(n, a, x_stride, panel, inputs, o, out_stride)
        row += n


@operator
def product(op, rows, given, scratch, start, stop):
    """out = x @ weight.T + bias, a part of the panels.

    Fields: x, its stride, out, its stride, panels, inputs, outputs, bias (float32) or 0, bf16 of
    out, bf16 of the weights, how x is read. At most SWEEP rows.
    """
    op = integers(op, FIELDS)
    x, x_stride, out, out_stride, inputs, outputs = op[1], op[2], op[3], op[4], op[6], op[7]
    bf16, weights_bf16, reading = op[9], op[10], op[11]
    width, tile = 2 if bf16 else 4, scratch
    panel_bytes = PANEL * ((inputs + 1) // 2 * 4 if weights_bf16 else inputs * 4)
    for panel in range(start, stop):
        column = panel * PANEL
        weights = op[5] + panel * panel_bytes
        columns = min(PANEL, outputs - column)
        direct = not bf16 and op[8] == 0 and columns == PANEL
        to, stride = (out + column * 4, out_stride) if direct else (tile, PANEL)
        multiply(x, x_stride, reading, rows, weights, inputs, weights_bf16, to, stride)
        if direct:
            continue
        for row in range(rows):
            values = tile + row * PANEL * 4
            if op[8]:
                numbers, bias = floats(values, columns), floats(op[8] + column * 4, columns)
                for i in range(columns):
                    numbers[i] += bias[i]
            target = out + (row * out_stride + column) * width
            vectors.write_row(values, target, columns, bf16)
