"""Engines that turn (z, class_id, truncation_psi) into images, behind one protocol."""
