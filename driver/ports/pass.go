// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// dialTime bounds how long a client waits for its connection to be passed on.
	dialTime = 5 * time.Second
	// maxSplices is how many connections are passed on at once.
	maxSplices = 1024
	// tellAgain keeps the log short while something is exhausted, and breath the processor idle.
	tellAgain = time.Minute
	breath    = 5 * time.Millisecond
)

// serve passes on what comes until the holder is closed.
func (h *Holder) serve(wait syscall.RawConn) {
	var (
		events = make([]unix.EpollEvent, 16)
		failed error
		told   time.Time
	)
	err := wait.Read(func(fd uintptr) bool {
		for h.ctx.Err() == nil {
			n, err := unix.EpollWait(int(fd), events, 0)
			if n == 0 || err != nil && !errors.Is(err, unix.EINTR) {
				failed = err
				return err != nil
			}
			for _, e := range events[:max(n, 0)] {
				err := h.ready(e)
				if err == nil {
					continue
				}
				if time.Since(told) > tellAgain {
					h.log.WithError(err).Warn("published ports")
					told = time.Now()
				}
				// a connection that cannot be taken is offered at once again
				time.Sleep(breath)
			}
		}
		return true
	})
	if err = errors.Join(err, failed); err != nil && h.ctx.Err() == nil {
		h.log.WithError(err).Error("connections to published ports are passed on no more")
	}
}

// ready takes one connection or datagram from a socket, unless it was closed meanwhile.
func (h *Holder) ready(e unix.EpollEvent) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e.Fd < 0 {
		h.flows.answer(h, ^e.Fd, e.Pad)
		return nil
	}
	if int(e.Fd) >= len(h.pages)*len(page{}) || h.socket(e.Fd).gen != e.Pad {
		return nil
	}
	if s := h.socket(e.Fd); !s.udp {
		return h.accept(s)
	}
	return h.receive(e.Fd)
}

// accept takes a connection. It is called with the lock held.
func (h *Holder) accept(s *socket) error {
	fd, from, err := unix.Accept4(int(s.fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) {
		return fmt.Errorf("pass a connection to port %s on: %w", s.addrPort(), err)
	}
	if err != nil {
		return nil // it has gone again
	}
	client := addrOf(from)
	via := s.via[family(client.Addr())]
	if via == (key{}) || h.own[keyOf(client, false)] || !h.admits(s, client.Addr()) { // the hooks are off: it would go round and round
		unix.Close(fd)
		return nil
	}
	if h.splices >= h.limits.splices {
		unix.Close(fd)
		return fmt.Errorf("a connection to port %s is refused: %d are being passed on already, which is all that are allowed: see who asks there with `ss -tn`", s.addrPort(), h.splices)
	}
	h.splices++
	h.done.Go(func() {
		h.splice(fd, via)
		h.mu.Lock()
		h.splices--
		h.mu.Unlock()
	})
	return nil
}

// splice connects a client that was not translated to where it is.
func (h *Holder) splice(fd int, via key) {
	client, err := fileConn(fd)
	if err != nil {
		h.log.WithError(err).WithField("port", via.addrPort()).Warn("pass a connection on")
		return
	}
	defer client.Close()
	var own key
	dialer := net.Dialer{Timeout: dialTime, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) {
			if own, err = h.claim(int(fd), via); err == nil {
				h.mu.Lock()
				h.own[own] = true
				h.mu.Unlock()
			}
		}); e != nil {
			return e
		}
		return err
	}}
	defer func() {
		h.mu.Lock()
		delete(h.own, own)
		h.mu.Unlock()
	}()
	server, err := dialer.DialContext(h.ctx, "tcp", via.addrPort().String())
	if err != nil {
		return // the client sees its connection closed, as with any proxy
	}
	defer server.Close()
	hangUp := func() { client.Close(); server.Close() }
	defer context.AfterFunc(h.ctx, hangUp)()
	back := make(chan struct{})
	go func() {
		defer close(back)
		stream(client, server, hangUp)
	}()
	stream(server, client, hangUp)
	<-back
}

// stream copies until from has said everything. A broken connection ends both directions: nobody would tell the other.
func stream(to, from net.Conn, hangUp func()) {
	if _, err := io.Copy(to, from); err != nil {
		hangUp()
		return
	}
	if tcp, ok := to.(*net.TCPConn); ok && tcp.CloseWrite() != nil {
		hangUp()
	}
}

func fileConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close() // the connection has a descriptor of its own
	return net.FileConn(f)
}
