// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// backlog is how many clients of a port may wait to be passed on.
const backlog = 64

// bind makes the socket that holds a port, one of IPv6 for both families if both.
func (h *Holder) bind(p Port, both bool) (int, error) {
	fd, err := open(p, both)
	if err != nil {
		return 0, err
	}
	err = func() error {
		if p.udp() {
			if err := wantDestination(fd, p.Addr.Addr()); err != nil {
				return err
			}
		} else if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil { // connections of an earlier holder may linger
			return err
		}
		err := unix.Bind(fd, sockaddr(p.Addr))
		if errors.Is(err, unix.EADDRINUSE) {
			// the hooks keep everybody off ports that were published before a restart, unless a socket is exempt
			if err := h.exempt(fd); err != nil {
				return err
			}
			err = unix.Bind(fd, sockaddr(p.Addr))
		}
		if err != nil || p.udp() {
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

// open makes a socket that can be bound to a port of its own family only, or of both.
func open(p Port, both bool) (int, error) {
	family, only6, typ := unix.AF_INET, 1, unix.SOCK_STREAM
	if p.Addr.Addr().Is6() {
		family = unix.AF_INET6
	}
	if both {
		only6 = 0
	}
	if p.udp() {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only6)
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

// wantDestination has a socket of every address tell which one a datagram came to: the answer comes from there.
func wantDestination(fd int, a netip.Addr) error {
	switch {
	case !a.IsUnspecified():
		return nil
	case a.Is6():
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
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

func boundTo(fd int) (uint16, error) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	return addrOf(name).Port(), nil
}

// claim gives a socket of our own a port before it is used, and remembers it: what comes from there to a port
// that we hold was not translated, and would go round and round. A local destination is reached from itself.
func (h *Holder) claim(fd int, via key) (key, error) {
	from := netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	if via.addrPort().Addr().Is4() {
		from = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	}
	if err := unix.Bind(fd, sockaddr(from)); err != nil {
		return key{}, err
	}
	port, err := boundTo(fd)
	return key{via.addr, port, via.udp}, err
}

// manyFiles is how many descriptors a daemon with a few thousand ports has.
const manyFiles = 8192

// growFiles makes room for the descriptors of many ports at once. The kernel doubles the table as it fills, and
// waits for every processor each time, while a container starts.
func growFiles(fd int) {
	if high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, manyFiles-1); err == nil { // else there is a lower limit
		unix.Close(high)
	}
}
