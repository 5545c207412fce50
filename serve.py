"""Serves models over HTTP: python serve.py --help"""

from gptstar.serving.__main__ import main

if __name__ == "__main__":
    main()
