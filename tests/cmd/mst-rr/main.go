// SPDX-License-Identifier: Apache-2.0

// Command mst-rr measures how fast one client and one server (mst-serve) take turns, with the client of `mustang bench`.
//
//	mst-rr rr web:80             one connection: a line of one byte, its answer, the next line (TCP_RR)
//	mst-rr crr web:80            a new connection for each: connect, one line, its answer, close (TCP_CRR)
//	mst-rr udp web:80            one UDP socket (UDP_RR)
//	mst-rr -for 2s rr web:80
//
// It prints one line of JSON.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/mustang-net/mustang/bench/turns"
)

func main() {
	duration := flag.Duration("for", time.Second, "stop after")
	flag.Usage = func() {
		fmt.Fprintf(os.Stderr, "usage: mst-rr [-for DURATION] %s HOST:PORT\n", strings.Join(turns.Kinds, "|"))
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
func run(kind, target string, duration time.Duration) (turns.Report, error) {
	addr, err := net.ResolveTCPAddr("tcp", target)
	if err != nil {
		return turns.Report{}, err
	}
	return turns.Run(kind, addr.AddrPort(), duration, "")
}
