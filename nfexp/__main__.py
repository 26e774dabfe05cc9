import sys

if __name__ == "__main__":
    # the working folder comes last: a random.py there is not Python's own
    if not sys.flags.safe_path:
        sys.path.append(sys.path.pop(0))
    from nfexp.entries import nfexp

    nfexp()
