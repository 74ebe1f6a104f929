"""Images, encoded or as pixels, become arrays of the model's size: predicted, fair between requests, on threads."""
