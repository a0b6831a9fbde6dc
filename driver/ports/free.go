// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// freeTries bounds how many numbers are tried that turn out to be taken on one of the addresses.
const freeTries = 64

// Free chooses a port number that nobody has on any of addrs, from the range that the kernel gives out itself.
// It holds nothing: somebody may take the number before [Holder.Hold] does, which then says [ErrInUse].
func (*Holder) Free(protocol string, addrs []netip.Addr) (uint16, error) {
	if len(addrs) == 0 {
		return 0, fmt.Errorf("find a free %s port: no address is given", protocol)
	}
	var busy []int // numbers that failed stay bound, so that the kernel gives out others
	defer func() {
		for _, fd := range busy {
			unix.Close(fd)
		}
	}()
	for range freeTries {
		port := uint16(0)
		var err error
		for _, a := range addrs {
			var fd int
			fd, err = probe(Port{netip.AddrPortFrom(a, port), protocol})
			if errors.Is(err, unix.EAFNOSUPPORT) && port != 0 {
				err = nil // a host without IPv6, of which no port is taken
				continue
			}
			if err != nil {
				break
			}
			busy = append(busy, fd)
			if port != 0 {
				continue
			}
			if port, err = boundTo(fd); err != nil {
				break
			}
		}
		switch {
		case err == nil:
			return port, nil
		case !errors.Is(err, unix.EADDRINUSE):
			return 0, fmt.Errorf("find a free %s port on %v: %w", protocol, addrs, err)
		case port == 0: // the first address has none
			return 0, fmt.Errorf("no %s port is free on %s: stop something, or widen net.ipv4.ip_local_port_range", protocol, addrs[0])
		}
	}
	return 0, fmt.Errorf("no %s port is free on all of %v: name one", protocol, addrs)
}

// probe binds a socket. The hooks see it as anybody's, so that they refuse what is published.
func probe(p Port) (int, error) {
	fd, err := open(p, false)
	if err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, sockaddr(p.Addr)); err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}
