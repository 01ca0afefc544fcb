"""The page: images in, scores, heat maps and regions out, in a browser. Needs `pip install 'anomalyclip_hf[app]'`."""
