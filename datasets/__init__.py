"""A data set on its way in: pictures, classes, what is wrong with them, records, and training batches."""
