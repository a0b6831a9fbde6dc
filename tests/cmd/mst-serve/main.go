// SPDX-License-Identifier: Apache-2.0

// Command mst-serve answers each line it gets, over TCP and UDP, with its name and the client's address.
//
//	mst-serve :80            the name is the hostname, or $NAME
//
// It says when it listens, with -wait late. On SIGTERM it goes on accepting for -linger, so that whoever
// balances can hear of it: the kernel resets what waits to be accepted when a listener closes. Then it
// stops listening, finishes what it has and exits.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

func main() {
	wait := flag.Duration("wait", 0, "before listening")
	linger := flag.Duration("linger", 300*time.Millisecond, "between SIGTERM and the end of listening")
	withClient := flag.Bool("client", false, "add the client's address to each answer")
	flag.Parse()
	if flag.NArg() == 0 {
		log.Fatal("usage: mst-serve [flags] ADDRESS…")
	}
	name := os.Getenv("NAME")
	if name == "" {
		name, _ = os.Hostname()
	}
	time.Sleep(*wait)
	answer := func(client net.Addr) []byte {
		if *withClient {
			return fmt.Appendf(nil, "%s %s\n", name, client)
		}
		return []byte(name + "\n")
	}
	var flows sync.WaitGroup
	var open []interface{ Close() error }
	for _, addr := range flag.Args() {
		tcp, err := net.Listen("tcp", addr)
		if err != nil {
			log.Fatal(err)
		}
		udp, err := net.ListenPacket("udp", addr)
		if err != nil {
			log.Fatal(err)
		}
		open = append(open, tcp, udp)
		go serveTCP(tcp, answer, &flows)
		go serveUDP(udp, answer)
	}
	fmt.Println("listening")
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
	time.Sleep(*linger)
	for _, l := range open {
		l.Close()
	}
	done := make(chan struct{})
	go func() { flows.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(3 * time.Second):
	}
}

func serveTCP(l net.Listener, answer func(net.Addr) []byte, flows *sync.WaitGroup) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		flows.Go(func() {
			defer conn.Close()
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				if _, err := conn.Write(answer(conn.RemoteAddr())); err != nil {
					return
				}
			}
		})
	}
}

func serveUDP(c net.PacketConn, answer func(net.Addr) []byte) {
	buf := make([]byte, 65536)
	for {
		_, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		if _, err := c.WriteTo(answer(from), from); err != nil {
			return
		}
	}
}
