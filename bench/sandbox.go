// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/driver/link"
)

// sandbox is a network namespace that lasts as long as its descriptor is open or a process is in it.
type sandbox struct{ netns *os.File }

// path leads to the namespace, from every thread of this process.
func (s sandbox) path() string { return fmt.Sprintf("/proc/self/fd/%d", s.netns.Fd()) }

func (s sandbox) do(fn func() error) error { return link.Host{}.Do(s.path(), fn) }

func (s sandbox) close() { s.netns.Close() }

// newSandbox makes a namespace, with its loopback device up.
func newSandbox() (sandbox, error) {
	type made struct {
		f   *os.File
		err error
	}
	ch := make(chan made)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ch <- made{nil, fmt.Errorf("make a network namespace: %w", err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		ch <- made{f, err}
	}()
	m := <-ch
	if m.err != nil {
		return sandbox{}, m.err
	}
	s := sandbox{m.f}
	if err := s.do(func() error { return link.Host{}.SetUp("lo") }); err != nil {
		s.close()
		return sandbox{}, err
	}
	return s, nil
}

// sysctl writes a setting of the namespace, below /proc/sys/net.
func (s sandbox) sysctl(name, value string) error {
	err := s.do(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) })
	if err != nil {
		return fmt.Errorf("set %s: %w", name, err)
	}
	return nil
}

// oneCPU is a CPU that we may run on: turns measure the path, and not how fast an idle CPU wakes, only if client and
// server have the same.
func oneCPU() (unix.CPUSet, error) {
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return one, fmt.Errorf("list the CPUs: %w", err)
	}
	for cpu := range len(all) * 64 {
		if all.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	return one, nil
}

// start starts a command in the namespace, on the CPUs given if any are.
func (s sandbox) start(cmd *exec.Cmd, cpus *unix.CPUSet) error {
	return s.do(func() error {
		if cpus == nil {
			return cmd.Start()
		}
		// what the thread may use the process inherits
		var before unix.CPUSet
		if err := unix.SchedGetaffinity(0, &before); err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(0, cpus); err != nil {
			return err
		}
		defer func() { _ = unix.SchedSetaffinity(0, &before) }() // it was allowed before
		return cmd.Start()
	})
}
