package bpf

func runHelper(string) int { return 1 }
