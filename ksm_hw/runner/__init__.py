"""The program that runs an artifact without Python: what builds it, and in program/ its C++."""
