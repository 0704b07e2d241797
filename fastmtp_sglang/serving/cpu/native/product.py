"""The product of rows with packed weights.

A panel holds PANEL outputs' weights, input by input, so that one pass over it reads memory in order
and computes up to ROWS_AT_ONCE rows. Each output is one chain of multiply-adds in the order of its
inputs, whatever number of rows is computed beside it.
"""

from numba import njit

from fastmtp_sglang.serving.cpu.native import vectors
from fastmtp_sglang.serving.cpu.native.compiled import operator
from fastmtp_sglang.serving.cpu.native.emitter import PANEL, ROWS_AT_ONCE
from fastmtp_sglang.serving.cpu.native.machine import floats, integers
from fastmtp_sglang.serving.cpu.native.passes import FIELDS

_p1, _p2, _p3, _p4, _p5, _p6 = (vectors.panel_product(n, False) for n in range(1, 7))
_h1, _h2, _h3, _h4, _h5, _h6 = (vectors.panel_product(n, True) for n in range(1, 7))


@njit(error_model="numpy")
def _multiply(x, x_stride, rows, panel, inputs, out, out_stride, bf16):
    """Rows of x by one panel, in passes of nearly equal size."""
    passes = (rows + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE
    row = 0
    for i in range(passes):
        n = (rows - row + passes - i - 1) // (passes - i)
        a, o = x + row * x_stride * 4, out + row * out_stride * 4
        if bf16:
            if n == 6:
                _h6(a, x_stride, panel, inputs, o, out_stride)
            elif n == 5:
                _h5(a, x_stride, panel, inputs, o, out_stride)
            elif n == 4:
                _h4(a, x_stride, panel, inputs, o, out_stride)
            elif n == 3:
                _h3(a, x_stride, panel, inputs, o, out_stride)
            elif n == 2:
                _h2(a, x_stride, panel, inputs, o, out_stride)
            else:
                _h1(a, x_stride, panel, inputs, o, out_stride)
        elif n == 6:
            _p6(a, x_stride, panel, inputs, o, out_stride)
        elif n == 5:
            _p5(a, x_stride, panel, inputs, o, out_stride)
        elif n == 4:
            _p4(a, x_stride, panel, inputs, o, out_stride)
        elif n == 3:
            _p3(a, x_stride, panel, inputs, o, out_stride)
        elif n == 2:
            _p2(a, x_stride, panel, inputs, o, out_stride)
        else:
            _p1(a, x_stride, panel, inputs, o, out_stride)
        row += n


@operator
def product(op, rows, given, scratch, start, stop):
    """out = x @ weight.T + bias, a part of the panels.

    Fields: x (float32), its stride, out, its stride, panels, inputs, outputs, bias (float32) or 0,
    bf16 of out, bf16 of the weights. At most SWEEP rows.
    """
    op = integers(op, FIELDS)
    x, x_stride, out, out_stride, inputs, outputs = op[1], op[2], op[3], op[4], op[6], op[7]
    bf16, half_weights = op[9], op[10]
    width, tile = 2 if bf16 else 4, scratch
    panel_bytes = inputs * PANEL * (2 if half_weights else 4)
    for panel in range(start, stop):
        column = panel * PANEL
        weights = op[5] + panel * panel_bytes
        columns = min(PANEL, outputs - column)
        if not bf16 and op[8] == 0 and columns == PANEL:
            _multiply(
                x, x_stride, rows, weights, inputs, out + column * 4, out_stride, half_weights
            )
            continue
        _multiply(x, x_stride, rows, weights, inputs, tile, PANEL, half_weights)
        for row in range(rows):
            values = tile + row * PANEL * 4
            if op[8]:
                numbers, bias = floats(values, columns), floats(op[8] + column * 4, columns)
                for i in range(columns):
                    numbers[i] += bias[i]
            target = out + (row * out_stride + column) * width
            vectors.write_row(values, target, columns, bf16)
