// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"fmt"
	"net"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// foreign puts a program of somebody else's before all others of a device, which is given by its name or number:
// `foreign CONTAINER|host DEVICE ingress|egress|netkit`, until `foreign away`. It lets everything pass, so that none
// after it runs, and writes what our own programs know each other by where no sandbox should be believed.
func foreign(s *scenario, _ string, args []string) result {
	if len(args) == 1 && args[0] == "away" {
		for _, l := range s.foreign {
			l.Close()
		}
		s.foreign = nil
		return result{}
	}
	if len(args) != 3 {
		return failure("usage: foreign CONTAINER|host DEVICE ingress|egress|netkit, or foreign away")
	}
	const ctxCB, vouched = 48, 0x6d737402 // struct __sk_buff
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, vouched), asm.StoreMem(asm.R1, ctxCB, asm.R2, asm.Word), asm.Mov.Imm(asm.R0, 0), asm.Return(),
		},
	})
	if err != nil {
		return result{err: err}
	}
	defer prog.Close()
	attach := func() error {
		index, err := strconv.Atoi(args[1])
		if err != nil {
			dev, err := net.InterfaceByName(args[1])
			if err != nil {
				return err
			}
			index = dev.Index
		}
		var l link.Link
		switch args[2] {
		case "ingress":
			l, err = link.AttachTCX(link.TCXOptions{Interface: index, Program: prog, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
		case "egress":
			l, err = link.AttachTCX(link.TCXOptions{Interface: index, Program: prog, Attach: ebpf.AttachTCXEgress, Anchor: link.Head()})
		case "netkit":
			l, err = link.AttachNetkit(link.NetkitOptions{Interface: index, Program: prog, Attach: ebpf.AttachNetkitPeer, Anchor: link.Head()})
		default:
			err = fmt.Errorf("no place %s: there are ingress, egress and netkit", args[2])
		}
		if err == nil {
			s.foreign = append(s.foreign, l)
			s.onEnd = append(s.onEnd, func() { l.Close() })
		}
		return err
	}
	if args[0] == "host" {
		return result{err: attach()}
	}
	path, err := s.netns(args[0])
	if err != nil {
		return result{err: err}
	}
	return result{err: inNetns(path, attach)}
}

// raw sends frames from outside or from the host, as mst-raw does in a container: `raw lan|host ARGUMENT…`.
func raw(s *scenario, _ string, args []string) result {
	if len(args) < 2 {
		return failure("usage: raw lan|host ARGUMENT…, as mst-raw has them")
	}
	argv, err := s.testProgram("mst-raw", args[0])
	if err != nil {
		return result{err: err}
	}
	return run("/", append(argv, args[1:]...)...)
}
