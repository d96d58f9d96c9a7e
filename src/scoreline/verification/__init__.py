"""Does a model do what its conventions say: labels, signs, scale, alpha, measured against what is known without it."""
