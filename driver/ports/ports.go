// SPDX-License-Identifier: Apache-2.0

// Package ports holds the host's ports that endpoints have published: nobody else takes them, and what the
// programs cannot translate is passed on.
package ports

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Port is a TCP or UDP port of the host's.
type Port struct {
	Addr     netip.AddrPort // the unspecified address stands for every one of its family
	Protocol string         // tcp or udp
}

// String is the port as messages show it: 0.0.0.0:80/tcp.
func (p Port) String() string { return p.Addr.String() + "/" + p.Protocol }

// Holder has a socket bound for every port it holds. Connections that reach one were not translated: their
// client is bound to a loopback address, or speaks IPv6 to a container that does not. They are passed on.
type Holder struct {
	exempt func(fd int) error
	log    logrus.FieldLogger

	poll int // epoll instance
	wake *os.File

	mu    sync.Mutex
	held  map[Port]int // sockets
	ports map[int]port // by socket
	own   map[netip.AddrPort]bool
	done  sync.WaitGroup
}

// New starts a holder. exempt keeps the socket hooks off a socket that is given to it.
func New(exempt func(fd int) error, log logrus.FieldLogger) (*Holder, error) {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("wait for connections to published ports: %w", err)
	}
	end, wake, err := os.Pipe()
	if err != nil {
		unix.Close(poll)
		return nil, fmt.Errorf("wait for connections to published ports: %w", err)
	}
	h := &Holder{
		exempt: exempt, log: log, poll: poll, wake: wake,
		held: map[Port]int{}, ports: map[int]port{}, own: map[netip.AddrPort]bool{},
	}
	if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, int(end.Fd()), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: -1}); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for connections to published ports: %w", err), end.Close(), wake.Close(), unix.Close(poll))
	}
	h.done.Go(func() { h.serve(end) })
	return h, nil
}

// port is what a socket is held for.
type port struct {
	Port
	via netip.AddrPort
}

// Hold binds a port. What reaches it is passed on to via, where the hooks translate. Holding it again changes
// nothing; a port that a process of the host has is refused with its name, as an error that is [ErrInUse].
func (h *Holder) Hold(p Port, via netip.AddrPort) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.held[p]; ok {
		return nil
	}
	fd, err := h.bind(p)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("port %s is %w%s: stop it, or choose another port", p, ErrInUse, by(p))
	}
	if err != nil {
		return fmt.Errorf("hold the port %s: %w", p, err)
	}
	if err := unix.EpollCtl(h.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		unix.Close(fd)
		return fmt.Errorf("hold the port %s: %w", p, err)
	}
	h.held[p], h.ports[fd] = fd, port{p, via}
	return nil
}

// ErrInUse says that a process of the host has the port.
var ErrInUse = errors.New("in use")

// Release undoes Hold. Connections that are being passed on go on.
func (h *Holder) Release(p Port) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if fd, ok := h.held[p]; ok {
		unix.Close(fd) // which takes it out of the epoll instance
		delete(h.held, p)
		delete(h.ports, fd)
	}
}

// Close releases every port.
func (h *Holder) Close() {
	h.wake.Close()
	h.done.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	for p, fd := range h.held {
		unix.Close(fd)
		delete(h.held, p)
	}
	unix.Close(h.poll)
}

// bind makes the socket that holds a port.
func (h *Holder) bind(p Port) (int, error) {
	fd, err := open(p)
	if err != nil {
		return 0, err
	}
	err = func() error {
		if err := h.exempt(fd); err != nil {
			return err
		}
		if p.Protocol == "udp" {
			return unix.Bind(fd, sockaddr(p.Addr))
		}
		// connections of an earlier holder may linger
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, sockaddr(p.Addr)); err != nil {
			return err
		}
		return unix.Listen(fd, backlog)
	}()
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

// backlog is how many clients may wait to be passed on, for a port.
const backlog = 64

// open makes a socket that can be bound to a port of its own family only.
func open(p Port) (int, error) {
	family, typ := unix.AF_INET, unix.SOCK_STREAM
	if p.Addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	if p.Protocol == "udp" {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil && !p.Addr.Addr().IsUnspecified() {
		// an address that the host does not have yet, or any more, may be held all the same
		err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1)
	}
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

func addrOf(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}
