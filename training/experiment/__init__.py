"""The paper's claims put to the test: the same runs with and without what the method adds, measured alike."""
