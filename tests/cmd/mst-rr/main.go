// SPDX-License-Identifier: Apache-2.0

// Command mst-rr measures how fast one client and one server (mst-serve) take turns over TCP.
//
//	mst-rr rr web:80             one connection: a line of one byte, its answer, the next line (TCP_RR)
//	mst-rr crr web:80            a new connection for each: connect, one line, its answer, close (TCP_CRR)
//	mst-rr -for 2s rr web:80
//
// It prints one line of JSON. The loop allocates nothing and its sockets block, so that it costs little more than its system calls.
// Connections are closed by the client: their ports stay in TIME_WAIT, so crr over a minute wants net.ipv4.tcp_tw_reuse=1.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// answerTimeout is how long one answer may take before the run has failed.
const answerTimeout = 2 * time.Second

// report is what is printed.
type report struct {
	Mode         string  `json:"mode"`
	Transactions int     `json:"transactions"`
	Seconds      float64 `json:"seconds"`
	PerSecond    float64 `json:"per_second"`
	P50          float64 `json:"p50_us"`
	P99          float64 `json:"p99_us"`
}

func main() {
	duration := flag.Duration("for", time.Second, "stop after")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: mst-rr [-for DURATION] rr|crr HOST:PORT")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 2 || *duration <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	r, err := run(flag.Arg(0), flag.Arg(1), *duration)
	if err != nil {
		fmt.Fprintf(os.Stderr, "mst-rr: %s %s: %v\n", flag.Arg(0), flag.Arg(1), err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, "mst-rr:", err)
		os.Exit(1)
	}
}

// run takes turns until the time is over. The name is looked up once, before the clock starts.
func run(mode, target string, duration time.Duration) (report, error) {
	addr, err := net.ResolveTCPAddr("tcp", target)
	if err != nil {
		return report{}, err
	}
	c := newClient(addr)
	turn, ok := map[string]func() error{"rr": c.ask, "crr": c.connectAndAsk}[mode]
	if !ok {
		return report{}, errors.New("no such mode: choose rr or crr")
	}
	if mode == "rr" {
		if err := c.connect(); err != nil {
			return report{}, err
		}
		defer c.close()
	}
	times := new(histogram)
	begin := time.Now()
	elapsed := time.Duration(0)
	for elapsed < duration {
		if err := turn(); err != nil {
			return report{}, fmt.Errorf("after %d transactions: %w", times.total, err)
		}
		now := time.Since(begin)
		times.add(now - elapsed)
		elapsed = now
	}
	return report{
		Mode: mode, Transactions: times.total, Seconds: elapsed.Seconds(),
		PerSecond: float64(times.total) / elapsed.Seconds(),
		P50:       times.quantile(0.50), P99: times.quantile(0.99),
	}, nil
}

// client is a blocking TCP socket, without the poller of package net.
type client struct {
	family int
	addr   syscall.Sockaddr
	fd     int
	line   []byte
	answer []byte
}

func newClient(addr *net.TCPAddr) *client {
	c := &client{fd: -1, line: []byte("\n"), answer: make([]byte, 4096)}
	if ip := addr.IP.To4(); ip != nil {
		c.family, c.addr = syscall.AF_INET, &syscall.SockaddrInet4{Addr: [4]byte(ip), Port: addr.Port}
	} else {
		c.family, c.addr = syscall.AF_INET6, &syscall.SockaddrInet6{Addr: [16]byte(addr.IP), Port: addr.Port}
	}
	return c
}

// connect opens the socket. A timeout on it, and not a deadline, keeps a dead server from hanging the run.
func (c *client) connect() error {
	var err error
	c.fd, err = syscall.Socket(c.family, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	limit := syscall.NsecToTimeval(answerTimeout.Nanoseconds())
	for _, option := range []int{syscall.SO_RCVTIMEO, syscall.SO_SNDTIMEO} {
		if err := syscall.SetsockoptTimeval(c.fd, syscall.SOL_SOCKET, option, &limit); err != nil {
			return fmt.Errorf("set a timeout: %w", err)
		}
	}
	if err := syscall.SetsockoptInt(c.fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	for {
		err := syscall.Connect(c.fd, c.addr)
		switch {
		case errors.Is(err, syscall.EINTR): // by the Go scheduler; connecting goes on, and so does the wait for it
			continue
		case errors.Is(err, syscall.EINPROGRESS):
			return fmt.Errorf("connect: no answer within %s", answerTimeout)
		case err != nil:
			return fmt.Errorf("connect: %w", err)
		}
		return nil
	}
}

func (c *client) close() {
	syscall.Close(c.fd)
	c.fd = -1
}

// ask sends a line and reads to the end of the one that comes back.
func (c *client) ask() error {
	if _, err := syscall.Write(c.fd, c.line); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	for {
		n, err := syscall.Read(c.fd, c.answer)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
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
