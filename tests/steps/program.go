// SPDX-License-Identifier: Apache-2.0

package steps

import (
	"encoding/binary"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// How the program looks at a system call.
const (
	harmless uint32 = 1 + iota // changes nothing that outlives the process
	always
	path0   // a change, of the path in the first argument
	path1   // or in the second
	open    // a change if it makes the file, or may write to it
	command // bpf(2): some commands are
	control // ioctl(2): but for those of terminals
	bind    // but for sockets of netlink
	send    // some messages of netlink are
	sendmsg
)

// Where registers are in what one read of struct pt_regs from its r10 on gets (x86-64).
const (
	fromR10 = 56
	argv0   = 56
	argv1   = 48
	argv2   = 40
	argv4   = 16
)

// The program's stack: offsets from its frame pointer.
const (
	stackComm   = -16
	stackPID    = -24 // struct bpf_pidns_info
	stackArgs   = -88
	stackRecord = -168 // a record
	stackKey    = -176
	stackRead   = -200 // what it reads besides
)

// record is what the program tells of a step.
type record struct {
	PID    uint32 // of the process, in the host's PID namespace
	Number uint32 // of the system call
	Detail uint64 // the command of bpf(2), or the type of a message and its length in the upper half
	Path   [64]byte
}

// recordSize is that of record, in bytes.
const recordSize = 80

// counter is the value of the counter's map.
type counter struct {
	Count  uint64 // of steps so far
	At     uint64 // the step to kill at
	Killed uint64 // the process that was killed
}

// program is attached to the raw tracepoint sys_enter. The call that it kills at is carried out before the process dies: the kernel
// looks at signals on the way out.
func program(t tables, comm string, dev, ino uint64) *ebpf.ProgramSpec {
	var name [8]byte
	copy(name[:], comm)
	insns := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		// is the process one of ours?
		asm.Mov.Reg(asm.R1, asm.RFP),
		asm.Add.Imm(asm.R1, stackComm),
		asm.Mov.Imm(asm.R2, 16),
		asm.FnGetCurrentComm.Call(),
		asm.LoadMem(asm.R1, asm.RFP, stackComm, asm.DWord),
		asm.LoadImm(asm.R2, int64(binary.NativeEndian.Uint64(name[:])), asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R2, "exit"),
		asm.LoadImm(asm.R1, int64(dev), asm.DWord),
		asm.LoadImm(asm.R2, int64(ino), asm.DWord),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, stackPID),
		asm.Mov.Imm(asm.R4, 8),
		asm.FnGetNsCurrentPidTgid.Call(),
		asm.JNE.Imm(asm.R0, 0, "exit"),

		// what kind of call is it?
		asm.LoadMem(asm.R7, asm.R6, 8, asm.DWord),
		asm.StoreMem(asm.RFP, stackKey, asm.R7, asm.Word),
		asm.LoadMapPtr(asm.R1, t.kinds.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackKey),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "unknown"),
		asm.LoadMem(asm.R8, asm.R0, 0, asm.Word),
		asm.JEq.Imm(asm.R8, int32(harmless), "exit"),
		asm.LoadMem(asm.R3, asm.R6, 0, asm.DWord),
		asm.Add.Imm(asm.R3, fromR10),
		asm.Mov.Reg(asm.R1, asm.RFP),
		asm.Add.Imm(asm.R1, stackArgs),
		asm.Mov.Imm(asm.R2, 64),
		asm.FnProbeReadKernel.Call(),

		// the record: R9 becomes the path's address, if there is one
		asm.Mov.Imm(asm.R9, 0),
		asm.StoreMem(asm.RFP, stackRecord+4, asm.R7, asm.Word),
		asm.LoadMem(asm.R1, asm.RFP, stackPID+4, asm.Word),
		asm.StoreMem(asm.RFP, stackRecord, asm.R1, asm.Word),
		asm.Mov.Imm(asm.R1, 0),
	}
	for at := int16(8); at < recordSize; at += 8 {
		insns = append(insns, asm.StoreMem(asm.RFP, stackRecord+at, asm.R1, asm.DWord))
	}
	insns = append(insns,
		asm.JEq.Imm(asm.R8, int32(open), "open"),
		asm.JEq.Imm(asm.R8, int32(command), "command"),
		asm.JEq.Imm(asm.R8, int32(control), "control"),
		asm.JEq.Imm(asm.R8, int32(bind), "bind"),
		asm.JEq.Imm(asm.R8, int32(send), "send"),
		asm.JEq.Imm(asm.R8, int32(sendmsg), "sendmsg"),
		asm.JEq.Imm(asm.R8, int32(path0), "path0"),
		asm.JEq.Imm(asm.R8, int32(path1), "path1"),
		asm.Ja.Label("count"),

		asm.LoadMem(asm.R9, asm.RFP, stackArgs+argv0, asm.DWord).WithSymbol("path0"),
		asm.Ja.Label("count"),
		asm.LoadMem(asm.R9, asm.RFP, stackArgs+argv1, asm.DWord).WithSymbol("path1"),
		asm.Ja.Label("count"),

		asm.LoadMem(asm.R9, asm.RFP, stackArgs+argv1, asm.DWord).WithSymbol("open"),
		asm.LoadMem(asm.R1, asm.RFP, stackArgs+argv2, asm.DWord),
		asm.JSet.Imm(asm.R1, unix.O_WRONLY|unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, "count"),
		asm.Ja.Label("exit"),

		asm.LoadMem(asm.R1, asm.RFP, stackArgs+argv0, asm.Word).WithSymbol("command"),
		asm.StoreMem(asm.RFP, stackRecord+8, asm.R1, asm.DWord),
		asm.JGT.Imm(asm.R1, 63, "count"), // unknown yet
		asm.LoadImm(asm.R2, int64(readingCommands()), asm.DWord),
		asm.RSh.Reg(asm.R2, asm.R1),
		asm.JSet.Imm(asm.R2, 1, "exit"),
		asm.JNE.Imm(asm.R1, unix.BPF_OBJ_PIN, "count"),
		asm.LoadMem(asm.R3, asm.RFP, stackArgs+argv1, asm.DWord),
		asm.Mov.Imm(asm.R2, 8),
	)
	insns = append(insns, readUser()...)
	insns = append(insns,
		asm.LoadMem(asm.R9, asm.RFP, stackRead, asm.DWord), // pathname of union bpf_attr
		asm.Ja.Label("count"),

		asm.LoadMem(asm.R1, asm.RFP, stackArgs+argv1, asm.Word).WithSymbol("control"),
		asm.StoreMem(asm.RFP, stackRecord+8, asm.R1, asm.DWord),
		asm.RSh.Imm(asm.R1, 8),
		asm.JEq.Imm(asm.R1, 'T', "exit"),
		asm.Ja.Label("count"),

		asm.LoadMem(asm.R3, asm.RFP, stackArgs+argv1, asm.DWord).WithSymbol("bind"),
		asm.Mov.Imm(asm.R2, 2),
	)
	insns = append(insns, readUser()...)
	insns = append(insns,
		asm.LoadMem(asm.R1, asm.RFP, stackRead, asm.Half),
		asm.JEq.Imm(asm.R1, unix.AF_NETLINK, "exit"),
		asm.Ja.Label("count"),

		// sendto(2): is its address one of netlink?
		asm.LoadMem(asm.R7, asm.RFP, stackArgs+argv1, asm.DWord).WithSymbol("send"),
		asm.LoadMem(asm.R3, asm.RFP, stackArgs+argv4, asm.DWord),
		asm.Ja.Label("address"),
		// sendmsg(2): that of struct msghdr; and the message is its first part
		asm.LoadMem(asm.R3, asm.RFP, stackArgs+argv1, asm.DWord).WithSymbol("sendmsg"),
		asm.Add.Imm(asm.R3, 16), // msg_iov
		asm.Mov.Imm(asm.R2, 8),
	)
	insns = append(insns, readUser()...)
	insns = append(insns,
		asm.LoadMem(asm.R3, asm.RFP, stackRead, asm.DWord),
		asm.Mov.Imm(asm.R2, 8),
	)
	insns = append(insns, readUser()...)
	insns = append(insns,
		asm.LoadMem(asm.R7, asm.RFP, stackRead, asm.DWord), // iov_base
		asm.LoadMem(asm.R3, asm.RFP, stackArgs+argv1, asm.DWord),
		asm.Mov.Imm(asm.R2, 8),
	)
	insns = append(insns, readUser()...)
	insns = append(insns,
		asm.LoadMem(asm.R3, asm.RFP, stackRead, asm.DWord), // msg_name
		asm.JEq.Imm(asm.R3, 0, "exit").WithSymbol("address"),
		asm.Mov.Imm(asm.R2, 2),
	)
	insns = append(insns, readUser()...)
	insns = append(insns,
		asm.LoadMem(asm.R1, asm.RFP, stackRead, asm.Half),
		asm.JNE.Imm(asm.R1, unix.AF_NETLINK, "exit"),
		asm.Mov.Reg(asm.R3, asm.R7),
		asm.Mov.Imm(asm.R2, 16), // struct nlmsghdr
	)
	insns = append(insns, readUser()...)
	insns = append(insns,
		asm.LoadMem(asm.R1, asm.RFP, stackRead, asm.Word),
		asm.LoadMem(asm.R2, asm.RFP, stackRead+4, asm.Half),
		asm.LoadMem(asm.R3, asm.RFP, stackRead+6, asm.Half),
		asm.LSh.Imm(asm.R1, 32),
		asm.Or.Reg(asm.R1, asm.R2),
		asm.StoreMem(asm.RFP, stackRecord+8, asm.R1, asm.DWord),
		asm.And.Imm(asm.R3, unix.NLM_F_DUMP),
		asm.JEq.Imm(asm.R3, unix.NLM_F_DUMP, "exit"),
		asm.JGT.Imm(asm.R2, 255, "netfilter"),
		asm.JLT.Imm(asm.R2, 16, "exit"), // a control message
		asm.And.Imm(asm.R2, 3),
		asm.JEq.Imm(asm.R2, 2, "exit"), // RTM_GET…
		asm.Ja.Label("count"),
		// changes of nftables come in batches, which begin with type 16; what is left are their questions, and flows
		asm.JEq.Imm(asm.R2, ctNew, "count").WithSymbol("netfilter"),
		asm.JEq.Imm(asm.R2, ctDelete, "count"),
		asm.Ja.Label("exit"),

		asm.JEq.Imm(asm.R9, 0, "number").WithSymbol("count"),
		asm.Mov.Reg(asm.R1, asm.RFP),
		asm.Add.Imm(asm.R1, stackRecord+16),
		asm.Mov.Imm(asm.R2, 64),
		asm.Mov.Reg(asm.R3, asm.R9),
		asm.FnProbeReadUserStr.Call(),

		// the step's number
		asm.Mov.Imm(asm.R1, 0).WithSymbol("number"),
		asm.StoreMem(asm.RFP, stackKey, asm.R1, asm.Word),
		asm.LoadMapPtr(asm.R1, t.counter.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackKey),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),
		asm.Mov.Reg(asm.R8, asm.R0),
		asm.Mov.Imm(asm.R7, 1),
		fetchAdd(asm.R8, asm.R7),
		asm.Add.Imm(asm.R7, 1),
		asm.StoreMem(asm.RFP, stackKey, asm.R7, asm.Word),
		asm.LoadMapPtr(asm.R1, t.records.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackKey),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, stackRecord),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call(),
		asm.LoadMem(asm.R1, asm.R8, 8, asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R7, "exit"),
		asm.LoadMem(asm.R1, asm.RFP, stackPID+4, asm.Word),
		asm.StoreMem(asm.R8, 16, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R1, int32(unix.SIGKILL)),
		asm.FnSendSignal.Call(),
		asm.Ja.Label("exit"),

		asm.LoadMapPtr(asm.R1, t.unknown.FD()).WithSymbol("unknown"),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, stackKey),
		asm.Mov.Reg(asm.R3, asm.R2),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call(),

		asm.Mov.Imm(asm.R0, 0).WithSymbol("exit"),
		asm.Return(),
	)
	return &ebpf.ProgramSpec{Name: "steps", Type: ebpf.RawTracepoint, Instructions: insns, License: "GPL"}
}

// fetchAdd adds src to what dst points to, and has src be what was there. cilium/ebpf 0.22 leaves the operation's code out of what it marshals.
func fetchAdd(dst, src asm.Register) asm.Instruction {
	in := asm.FetchAdd.Mem(dst, src, asm.DWord, 0)
	in.Constant = int64(asm.FetchAdd >> 8)
	return in
}

// readUser reads R2 bytes at R3 of the process.
func readUser() asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.RFP),
		asm.Add.Imm(asm.R1, stackRead),
		asm.FnProbeReadUser.Call(),
		asm.JNE.Imm(asm.R0, 0, "exit"),
	}
}
