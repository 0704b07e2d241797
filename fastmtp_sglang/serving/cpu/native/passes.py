"""What a sweep is told: the fields of an operator and of a pass over rows.

An operator is FIELDS int64: the address of its machine code, then what that function's docstring
names; addresses are of row 0, distances ("strides") are in elements, `bf16` fields are 1 where
elements are bfloat16 and 0 where they are float32. A pass is PASS_FIELDS int64.
"""

FIELDS = 18
# The last two: into how many parts an operator falls, for each row and besides.
PARTS_A_ROW, PARTS = FIELDS - 2, FIELDS - 1
# How many rows; the addresses of their token ids, positions and cache slots to write (int64), and
# of SEEN fields a row for attention; of the workers' scratch memory, and its bytes for each.
ROWS, IDS, POSITIONS, SLOTS, VISIBLE, SCRATCH, SCRATCH_BYTES = range(7)
PASS_FIELDS = 8
# What a row sees: the address of its request's cache slots (int32), how many of them from the first
# on, and a bit mask of the 64 behind those.
SEEN = 3
# Rows of a sweep through a list of operators, at most: bounds the buffers between them.
SWEEP = 256
