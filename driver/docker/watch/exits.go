// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// exits tells as soon as a process ends, by one epoll over the pidfds of all of them.
type exits struct {
	epoll int
	wake  int // eventfd that ends run
	owns  func(pid int, container string) bool

	mu  sync.Mutex
	fds map[int]process // by pidfd
}

type process struct {
	pid       int
	container string
	gone      func()
}

func newExits() (*exits, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll for processes: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(wake)})
	}
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("make an eventfd for processes: %w", err)
	}
	return &exits{epoll: epoll, wake: wake, owns: inCgroup, fds: make(map[int]process)}, nil
}

// inCgroup reports whether the process is the container's: the engine names the cgroup by the full id,
// with either cgroup driver and below any parent. A pid that means another process here, because the
// engine lives in a pid namespace of its own, is told apart by this too.
func inCgroup(pid int, container string) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && container != "" && strings.Contains(string(text), container)
}

// add calls gone, from run, once the container's process has ended, and returns what stops that. It
// fails for a pid that cannot be seen from here or is not the container's.
func (e *exits) add(pid int, container string, gone func()) (stop func(), err error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open pidfd of process %d: %w", pid, err)
	}
	// Asked after opening, and the process is not reaped even after that: so no other process with the
	// same pid can have come in between. A process of another user's may not be sent signals (EPERM), and is there.
	if !e.owns(pid, container) || errors.Is(unix.PidfdSendSignal(fd, 0, nil, 0), unix.ESRCH) {
		unix.Close(fd)
		return nil, fmt.Errorf("process %d is not of container %s", pid, container)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fds == nil {
		unix.Close(fd)
		return nil, errors.New("closed")
	}
	if err := unix.EpollCtl(e.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	e.fds[fd] = process{pid: pid, container: container, gone: gone}
	return func() { e.remove(fd, pid, container) }, nil
}

// remove does nothing if the descriptor's number has passed on to another process.
func (e *exits) remove(fd, pid int, container string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p, ok := e.fds[fd]; ok && p.pid == pid && p.container == container {
		delete(e.fds, fd)
		unix.Close(fd) // leaves the epoll by itself
	}
}

// run waits for processes until close, and then gives back what it holds.
func (e *exits) run() {
	defer e.release()
	var ready [64]unix.EpollEvent
	for {
		n, err := unix.EpollWait(e.epoll, ready[:], -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		for _, ev := range ready[:max(n, 0)] {
			fd := int(ev.Fd)
			if fd == e.wake {
				return
			}
			e.mu.Lock()
			p, ok := e.fds[fd]
			// Since EpollWait the number may have passed on to the pidfd of a live process.
			ok = ok && ended(fd)
			if ok {
				delete(e.fds, fd)
				unix.Close(fd)
			}
			e.mu.Unlock()
			if ok {
				p.gone()
			}
		}
	}
}

// ended reports whether the process has ended. A signal 0 would not tell: it reaches zombies.
func ended(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

func (e *exits) release() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for fd := range e.fds {
		unix.Close(fd)
	}
	e.fds = nil
	unix.Close(e.wake)
	unix.Close(e.epoll)
}

// close ends run, which must have been started.
func (e *exits) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fds == nil {
		return // ended by itself, and its descriptors are closed
	}
	one := binary.NativeEndian.AppendUint64(nil, 1)
	_, _ = unix.Write(e.wake, one) // an eventfd takes it, or is woken already
}
