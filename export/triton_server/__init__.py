"""A Triton server started on a repository and ended again."""
