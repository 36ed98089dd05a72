"""From scheduled loops to what LLVM takes."""
