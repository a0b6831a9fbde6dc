// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// What is passed on takes this long at most to be begun, and a datagram's answer to come.
const (
	dialTime   = 5 * time.Second
	answerTime = 60 * time.Second
	maxPacket  = 65535
)

// serve passes on what comes until the holder is closed.
func (h *Holder) serve(end *os.File) {
	defer end.Close()
	events := make([]unix.EpollEvent, 16)
	for {
		n, err := unix.EpollWait(h.poll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			h.log.WithError(err).Error("wait for connections to published ports")
			return
		}
		for _, e := range events[:max(n, 0)] {
			if e.Fd < 0 {
				return
			}
			h.ready(int(e.Fd))
		}
	}
}

// ready takes one connection or datagram from a socket.
func (h *Holder) ready(fd int) {
	h.mu.Lock()
	p, ok := h.ports[fd]
	h.mu.Unlock()
	switch {
	case !ok: // released meanwhile
	case p.Protocol == "tcp":
		h.accept(fd, p)
	default:
		h.receive(fd, p)
	}
}

func (h *Holder) accept(fd int, p port) {
	conn, from, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return
	}
	client, err := fileConn(conn)
	if err != nil {
		h.log.WithError(err).WithField("port", p.Port).Warn("pass a connection on")
		return
	}
	if h.isOwn(from) { // the hooks are off: it would go round and round
		client.Close()
		return
	}
	go h.splice(client, p)
}

// splice connects a client that was not translated to the port, by a socket that is.
func (h *Holder) splice(client net.Conn, p port) {
	defer client.Close()
	server, err := h.dial("tcp", p)
	if err != nil {
		return // the client sees its connection closed, as with any proxy
	}
	defer h.hangUp(server)
	there := make(chan struct{})
	go func() {
		defer close(there)
		_, _ = io.Copy(server, client)
		closeWrite(server)
	}()
	_, _ = io.Copy(client, server)
	closeWrite(client)
	<-there
}

func closeWrite(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.CloseWrite() // the other side may be gone
	}
}

// receive passes a datagram on and its answers back.
func (h *Holder) receive(fd int, p port) {
	b := make([]byte, maxPacket)
	n, from, err := unix.Recvfrom(fd, b, 0)
	if err != nil || h.isOwn(from) {
		return
	}
	go func() {
		server, err := h.dial("udp", p)
		if err != nil {
			return
		}
		defer h.hangUp(server)
		if _, err := server.Write(b[:n]); err != nil {
			return
		}
		if err := server.SetReadDeadline(time.Now().Add(answerTime)); err != nil {
			return
		}
		for {
			n, err := server.Read(b)
			if err != nil {
				return
			}
			h.mu.Lock()
			if h.held[p.Port] == fd {
				_ = unix.Sendto(fd, b[:n], 0, from) // as any datagram, it may be lost
			}
			h.mu.Unlock()
		}
	}()
}

// dial connects to where the hooks translate.
func (h *Holder) dial(network string, p port) (net.Conn, error) {
	c, err := net.DialTimeout(network, p.via.String(), dialTime)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.own[local(c)] = true
	return c, nil
}

func (h *Holder) hangUp(c net.Conn) {
	h.mu.Lock()
	delete(h.own, local(c))
	h.mu.Unlock()
	c.Close()
}

func (h *Holder) isOwn(from unix.Sockaddr) bool {
	a := addrOf(from)
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.own[a]
}

func local(c net.Conn) netip.AddrPort {
	switch a := c.LocalAddr().(type) {
	case *net.TCPAddr:
		return unmapped(a.AddrPort())
	case *net.UDPAddr:
		return unmapped(a.AddrPort())
	}
	return netip.AddrPort{}
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func fileConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close() // the connection has a descriptor of its own
	return net.FileConn(f)
}
