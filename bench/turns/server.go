// SPDX-License-Identifier: Apache-2.0

package turns

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Serve gives back what it gets, over TCP and UDP, on every address, and returns only with an error. TCP has one
// client at a time, as each run has. congestion is as for Run.
func Serve(congestion string, addrs ...netip.AddrPort) error {
	failed := make(chan error)
	for _, addr := range addrs {
		tcp, err := listen(addr, unix.SOCK_STREAM, congestion)
		if err != nil {
			return fmt.Errorf("listen on %s: %w", addr, err)
		}
		udp, err := listen(addr, unix.SOCK_DGRAM, "")
		if err != nil {
			return fmt.Errorf("listen on %s: %w", addr, err)
		}
		go func() { failed <- serveTCP(tcp) }()
		go func() { failed <- serveUDP(udp) }()
	}
	return <-failed
}

func listen(addr netip.AddrPort, kind int, congestion string) (int, error) {
	family, sa := sockaddr(addr)
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, sa); err != nil || kind == unix.SOCK_DGRAM {
		return fd, err
	}
	// connections inherit it
	if err := tune(fd, congestion); err != nil {
		return -1, err
	}
	return fd, unix.Listen(fd, 128)
}

func serveTCP(listener int) error {
	buf := make([]byte, 4096)
	for {
		conn, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		echo(conn, buf)
		_ = unix.Close(conn) // nothing is to be done about it
	}
}

// echo ends with the connection, whichever way that ends: the client tells of it.
func echo(conn int, buf []byte) {
	for {
		n, err := unix.Read(conn, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		if _, err := unix.Write(conn, buf[:n]); err != nil {
			return
		}
	}
}

func serveUDP(socket int) error {
	buf := make([]byte, 4096)
	for {
		n, from, err := unix.Recvfrom(socket, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if err := unix.Sendto(socket, buf[:n], 0, from); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("send: %w", err)
		}
	}
}
