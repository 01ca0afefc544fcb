"""The page: images in, scores, heat maps and regions out, in a browser. Needs gradio, of the extra `app`."""
