"""How a model runs fast, with no change to what is learned beyond rounding."""
