"""The pictures that the toy models see: easy-VQA's, one coloured shape on white."""

SIDE = 64
PATCH = 8
MERGE = 2
NUM_PATCHES = (SIDE // PATCH) ** 2
NUM_IMAGE_TOKENS = NUM_PATCHES // MERGE**2

IMAGE_MEAN, IMAGE_STD = 0.9, 0.2  # the pictures are mostly white
