// SPDX-License-Identifier: Apache-2.0

// Package turns measures how fast a client and a server take turns: a line of one byte, its answer, the next line.
//
// The loops allocate nothing and their sockets block, so that they cost little more than their system calls. The
// client closes connections: their ports stay in TIME_WAIT, so that many of them want net.ipv4.tcp_tw_reuse=1.
package turns

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// answerTimeout is how long one answer may take before the run has failed.
const answerTimeout = 2 * time.Second

// Kinds of turns.
const (
	RR    = "rr"  // on one TCP connection (TCP_RR)
	CRR   = "crr" // each on a TCP connection of its own: connect, ask, close (TCP_CRR)
	UDPRR = "udp" // on one UDP socket (UDP_RR)
)

// Kinds lists them.
var Kinds = []string{RR, CRR, UDPRR}

// Report is what a run gives.
type Report struct {
	Mode         string  `json:"mode"` // one of Kinds
	Transactions int     `json:"transactions"`
	Seconds      float64 `json:"seconds"`
	PerSecond    float64 `json:"per_second"`
	P50          float64 `json:"p50_us"`
	P99          float64 `json:"p99_us"`
}

// Run takes turns with a server until the time is over. congestion is the congestion control of TCP, "" for the
// system's.
func Run(kind string, server netip.AddrPort, duration time.Duration, congestion string) (Report, error) {
	if !slices.Contains(Kinds, kind) {
		return Report{}, fmt.Errorf("no such mode %q: choose %s", kind, strings.Join(Kinds, ", "))
	}
	c := newClient(server, kind == UDPRR, congestion)
	turn := c.ask
	if kind == CRR {
		turn = c.connectAndAsk
	} else {
		if err := c.connect(); err != nil {
			return Report{}, err
		}
		defer c.close()
	}
	times := new(histogram)
	begin := time.Now()
	elapsed := time.Duration(0)
	for elapsed < duration {
		if err := turn(); err != nil {
			return Report{}, fmt.Errorf("after %d transactions: %w", times.total, err)
		}
		now := time.Since(begin)
		times.add(now - elapsed)
		elapsed = now
	}
	return Report{
		Mode: kind, Transactions: times.total, Seconds: elapsed.Seconds(),
		PerSecond: float64(times.total) / elapsed.Seconds(),
		P50:       times.quantile(0.50), P99: times.quantile(0.99),
	}, nil
}

// client is a blocking socket, without the poller of package net.
type client struct {
	kind, family int
	addr         unix.Sockaddr
	congestion   string
	fd           int
	line         []byte
	answer       []byte
}

func newClient(server netip.AddrPort, udp bool, congestion string) *client {
	c := &client{kind: unix.SOCK_STREAM, congestion: congestion, fd: -1, line: []byte("\n"), answer: make([]byte, 4096)}
	c.family, c.addr = sockaddr(server)
	if udp {
		c.kind = unix.SOCK_DGRAM
	}
	return c
}

func sockaddr(a netip.AddrPort) (family int, addr unix.Sockaddr) {
	if a.Addr().Unmap().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Addr: a.Addr().Unmap().As4(), Port: int(a.Port())}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// connect opens the socket. A timeout on it, and not a deadline, keeps a dead server from hanging the run.
func (c *client) connect() (err error) {
	if c.fd, err = unix.Socket(c.family, c.kind|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	limit := unix.NsecToTimeval(answerTimeout.Nanoseconds())
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, option, &limit); err != nil {
			return fmt.Errorf("set a timeout: %w", err)
		}
	}
	if c.kind == unix.SOCK_STREAM {
		if err := tune(c.fd, c.congestion); err != nil {
			return err
		}
	}
	for {
		err := unix.Connect(c.fd, c.addr)
		switch {
		case errors.Is(err, unix.EINTR): // by the Go scheduler; connecting goes on, and so does the wait for it
			continue
		case errors.Is(err, unix.EINPROGRESS):
			return fmt.Errorf("connect: no answer within %s", answerTimeout)
		case err != nil:
			return fmt.Errorf("connect: %w", err)
		}
		return nil
	}
}

// tune sets what both ends of a TCP connection want.
func tune(fd int, congestion string) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	if congestion == "" {
		return nil
	}
	if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion); err != nil {
		return fmt.Errorf("set the congestion control %s: %w", congestion, err)
	}
	return nil
}

func (c *client) close() {
	_ = unix.Close(c.fd) // nothing is to be done about it
	c.fd = -1
}

// ask sends a line and reads to the end of the one that comes back.
func (c *client) ask() error {
	if _, err := unix.Write(c.fd, c.line); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	for {
		n, err := unix.Read(c.fd, c.answer)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return fmt.Errorf("no answer within %s", answerTimeout)
		case err != nil:
			return fmt.Errorf("read: %w", err)
		case n == 0:
			return errors.New("the server closed the connection")
		case bytes.IndexByte(c.answer[:n], '\n') >= 0:
			return nil
		}
	}
}

func (c *client) connectAndAsk() error {
	if err := c.connect(); err != nil {
		return err
	}
	err := c.ask()
	c.close()
	return err
}

// histogram counts durations in steps of 100 ns; the last bucket takes all that are longer than it reaches.
type histogram struct {
	buckets [1 << 20]uint32 // to 105 ms
	total   int
}

const step = 100 * time.Nanosecond

func (h *histogram) add(d time.Duration) {
	h.buckets[min(int(d/step), len(h.buckets)-1)]++
	h.total++
}

// quantile is the duration in microseconds that a share q of all do not exceed.
func (h *histogram) quantile(q float64) float64 {
	left := q * float64(h.total)
	for i, n := range h.buckets {
		left -= float64(n)
		if left <= 0 {
			return float64(i+1) * float64(step) / float64(time.Microsecond)
		}
	}
	return 0
}
