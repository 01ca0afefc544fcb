"""Pictures drawn from a seed: surfaces, objects and scans, flawless or with a defect and its exact mask."""
