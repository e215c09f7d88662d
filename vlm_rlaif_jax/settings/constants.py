"""Constants that every part of the package and the commands read."""

VIDEO = -200  # the token id of the video slot, where the visual tokens go
PAD = -1  # in place of a token where a row has none; no tokenizer has this id
SIZES = ('tiny', 'small', '7b', '13b')  # named networks, see `configs.models`
WORLD_SIZES = ('tiny', 'small')  # those of the built-in world
