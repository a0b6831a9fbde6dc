// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"
)

// TestStackOfEveryKernel keeps each chain of calls within the 512 bytes of stack that all kernels of ours allow. The one that
// tests run on may allow more: later ones give a program a stack of its own, or round frames up to less than 32 bytes.
func TestStackOfEveryKernel(t *testing.T) {
	for _, object := range [][]byte{lxcObject, sockObject, hostObject} {
		spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
		require.NoError(t, err)
		for name, program := range spec.Programs {
			frames, calls := frames(program.Instructions)
			require.NotZero(t, frames[program.Instructions[0].Symbol()], "%s uses no stack", name)
			var deepest func(function string, chain []string) (int, []string)
			deepest = func(function string, chain []string) (int, []string) {
				chain = append(chain[:len(chain):len(chain)], function)
				most, way := 0, chain
				for _, callee := range calls[function] {
					if n, w := deepest(callee, chain); n > most {
						most, way = n, w
					}
				}
				return most + (max(frames[function], 1)+31)/32*32, way
			}
			n, way := deepest(program.Instructions[0].Symbol(), nil)
			require.LessOrEqual(t, n, 512, "%s: %v", name, way)
		}
	}
}

// frames are the bytes of stack that each function uses, and the functions that it calls.
func frames(instructions asm.Instructions) (frames map[string]int, calls map[string][]string) {
	frames, calls = map[string]int{}, map[string][]string{}
	function := ""
	for i, in := range instructions {
		if s := in.Symbol(); s != "" {
			if i == 0 || isFunction(instructions, s) {
				function = s
			}
		}
		used := 0
		switch class := in.OpCode.Class(); {
		case class.IsStore() && in.Dst == asm.R10, class.IsLoad() && in.Src == asm.R10:
			used = -int(in.Offset)
		case in.OpCode.ALUOp() == asm.Add && i > 0 && instructions[i-1].Src == asm.R10 && instructions[i-1].OpCode.ALUOp() == asm.Mov:
			used = -int(in.Constant)
		}
		frames[function] = max(frames[function], used)
		if (in.IsFunctionCall() || in.IsLoadOfFunctionPointer()) && in.Reference() != "" {
			calls[function] = append(calls[function], in.Reference())
		}
	}
	return frames, calls
}

// isFunction tells whether a symbol is called, and not a label within a function.
func isFunction(instructions asm.Instructions, symbol string) bool {
	for _, in := range instructions {
		if (in.IsFunctionCall() || in.IsLoadOfFunctionPointer()) && in.Reference() == symbol {
			return true
		}
	}
	return false
}
