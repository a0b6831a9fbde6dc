// SPDX-License-Identifier: Apache-2.0

// Package steps counts the system calls by which a program changes something that outlives it, and kills it at one of them.
//
// It looks at every system call of the processes of that name in this PID namespace, so that a step which somebody adds to the program
// is found without being told. Another process of the same name on the machine is left alone. It knows the system calls of x86-64.
package steps

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// most is how many steps are remembered.
const most = 16384

// Steps are those of the program while it is watched.
type Steps struct {
	tables tables
	link   link.Link
}

// tables are what the BPF program reads and writes.
type tables struct{ kinds, counter, records, unknown *ebpf.Map }

// Watch begins to count the steps of a program, which is called comm (proc_pid_comm(5), at most 7 bytes).
func Watch(comm string) (*Steps, error) {
	if len(comm) > 7 {
		return nil, fmt.Errorf("watch %s: its name is longer than 7 bytes", comm)
	}
	dev, ino, err := pidNamespace()
	if err != nil {
		return nil, err
	}
	s := &Steps{}
	if err := s.attach(comm, dev, ino); err != nil {
		s.Close()
		return nil, fmt.Errorf("watch the steps of %s: %w", comm, err)
	}
	return s, nil
}

// pidNamespace is how BPF tells ours from others: its device as the kernel keeps it, and its inode.
func pidNamespace() (dev, ino uint64, err error) {
	info, err := os.Stat("/proc/self/ns/pid")
	if err != nil {
		return 0, 0, err
	}
	stat := info.Sys().(*syscall.Stat_t)
	return uint64(unix.Major(stat.Dev))<<20 | uint64(unix.Minor(stat.Dev)), stat.Ino, nil
}

func (s *Steps) attach(comm string, dev, ino uint64) error {
	var errs []error
	make := func(kind ebpf.MapType, value, entries uint32) *ebpf.Map {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: kind, KeySize: 4, ValueSize: value, MaxEntries: entries})
		errs = append(errs, err)
		return m
	}
	s.tables = tables{
		kinds:   make(ebpf.Hash, 4, 1024),
		counter: make(ebpf.Array, 24, 1),
		records: make(ebpf.Array, recordSize, most),
		unknown: make(ebpf.Hash, 4, 1024),
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for number, c := range changing {
		if err := s.tables.kinds.Put(number, c.kind); err != nil {
			return err
		}
	}
	for _, number := range reading {
		if err := s.tables.kinds.Put(number, harmless); err != nil {
			return err
		}
	}
	p, err := ebpf.NewProgram(program(s.tables, comm, dev, ino))
	if err != nil {
		return err
	}
	defer p.Close() // the link has it
	s.link, err = link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sys_enter", Program: p})
	return err
}

// Arm counts from 1 again, and has the process killed that makes step number at; none, if it is 0. The step itself is made.
func (s *Steps) Arm(at int) error {
	return s.tables.counter.Put(uint32(0), counter{At: uint64(at)})
}

// Made is how many steps were made since, and the process that was killed at one, 0 if none was.
func (s *Steps) Made() (number, killed int, err error) {
	var c counter
	err = s.tables.counter.Lookup(uint32(0), &c)
	return int(c.Count), int(c.Killed), err
}

// Name tells of one step which it was.
func (s *Steps) Name(number int) string {
	var r record
	if err := s.tables.records.Lookup(uint32(number), &r); err != nil {
		return err.Error()
	}
	return r.String()
}

// Unknown are the numbers of system calls that the program makes and this package does not know: whether they change something, a person must say.
func (s *Steps) Unknown() []uint32 {
	found := map[uint32]bool{}
	var number, value uint32
	for entries := s.tables.unknown.Iterate(); entries.Next(&number, &value); {
		found[number] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// Close ends the watch.
func (s *Steps) Close() {
	if s.link != nil {
		s.link.Close()
	}
	for _, m := range []*ebpf.Map{s.tables.kinds, s.tables.counter, s.tables.records, s.tables.unknown} {
		if m != nil {
			m.Close()
		}
	}
}
