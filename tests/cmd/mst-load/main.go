// SPDX-License-Identifier: Apache-2.0

// Command mst-load asks a server again and again, each time on a new flow, and counts who answers.
//
//	mst-load -n 3000 web:80            3,000 requests
//	mst-load -for 10s -c 4 web:80      four at a time for ten seconds
//	mst-load -udp -n 100 web:53
//	mst-load -hold -for 5s web:80      one flow, asked again and again
//
// SIGINT and SIGTERM end it early, with its report. It exits with 1 if a request failed. Its last line is "N requests, N failed, at most D without an answer".
// With -slowest there is a line "slowest answer D" before it, of those that came.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

type options struct {
	udp, hold  bool
	slowest    bool
	n, clients int
	duration   time.Duration
	timeout    time.Duration
	pause      time.Duration
}

type result struct {
	at   time.Time
	took time.Duration
	name string
	err  error
}

func main() {
	var o options
	flag.BoolVar(&o.udp, "udp", false, "datagrams instead of TCP")
	flag.BoolVar(&o.hold, "hold", false, "keep one flow a client")
	flag.BoolVar(&o.slowest, "slowest", false, "say how long the slowest answer took")
	flag.IntVar(&o.n, "n", 0, "number of requests; 0: until -for is over")
	flag.IntVar(&o.clients, "c", 1, "requests at a time")
	flag.DurationVar(&o.duration, "for", 30*time.Second, "stop after")
	flag.DurationVar(&o.timeout, "timeout", 2*time.Second, "for one request")
	flag.DurationVar(&o.pause, "pause", 0, "between a client's requests")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: mst-load [flags] HOST:PORT")
		os.Exit(2)
	}
	results := run(o, flag.Arg(0))
	if o.slowest {
		fmt.Printf("slowest answer %s\n", slowest(results).Round(time.Millisecond/10))
	}
	if report(results) > 0 {
		os.Exit(1)
	}
}

// run asks until the number or the time is reached.
func run(o options, addr string) []result {
	var mu sync.Mutex
	var all []result
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	left := o.n
	end := time.Now().Add(o.duration)
	take := func() bool {
		mu.Lock()
		defer mu.Unlock()
		if stop.Err() != nil || time.Now().After(end) || o.n > 0 && left == 0 {
			return false
		}
		left--
		return true
	}
	var group sync.WaitGroup
	for range o.clients {
		group.Go(func() {
			c := &client{options: o, addr: addr}
			defer c.close()
			for take() {
				asked := time.Now()
				name, err := c.ask()
				mu.Lock()
				all = append(all, result{time.Now(), time.Since(asked), name, err})
				mu.Unlock()
				time.Sleep(o.pause)
			}
		})
	}
	group.Wait()
	return all
}

type client struct {
	options
	addr string
	conn net.Conn
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// ask sends one line and returns the line that comes back: the server's name.
func (c *client) ask() (string, error) {
	if c.conn == nil {
		network := "tcp"
		if c.udp {
			network = "udp"
		}
		conn, err := net.DialTimeout(network, c.addr, c.timeout)
		if err != nil {
			return "", err
		}
		c.conn = conn
	}
	if !c.hold {
		defer c.close()
	}
	if err := c.conn.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return "", err
	}
	if _, err := c.conn.Write([]byte("who\n")); err != nil {
		c.close()
		return "", err
	}
	line, err := bufio.NewReaderSize(c.conn, 512).ReadString('\n')
	if err != nil {
		c.close()
		return "", err
	}
	return strings.TrimSpace(line), nil
}

// slowest is how long the slowest answer took.
func slowest(results []result) (most time.Duration) {
	for _, r := range results {
		if r.err == nil {
			most = max(most, r.took)
		}
	}
	return most
}

// report prints who answered how often, what failed, and the longest time without an answer.
func report(results []result) (failed int) {
	counts, errs := map[string]int{}, map[string]int{}
	var gap time.Duration
	var last time.Time
	slices.SortFunc(results, func(a, b result) int { return a.at.Compare(b.at) })
	for _, r := range results {
		if r.err != nil {
			failed++
			errs[reason(r.err)]++
			continue
		}
		if !last.IsZero() && failed > 0 && r.at.Sub(last) > gap {
			gap = r.at.Sub(last)
		}
		last = r.at
		counts[r.name]++
	}
	for _, m := range []map[string]int{counts, errs} {
		names := make([]string, 0, len(m))
		for name := range m {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			fmt.Printf("%7d  %s\n", m[name], name)
		}
	}
	fmt.Printf("%d requests, %d failed, at most %s without an answer\n", len(results), failed, gap.Round(time.Millisecond/10))
	return failed
}

// reason is the last part of an error, without the ports that make each one different.
func reason(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}
