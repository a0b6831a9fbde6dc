// SPDX-License-Identifier: Apache-2.0

// Package dns answers for service names inside each sandbox.
//
// A listener in every sandbox answers the names that [Names] knows and hands every other query to the
// engine's resolver, byte for byte. The engine's resolver stays where it is and answers alone whenever
// this package does not run.
package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mustang-net/mustang/service"
)

// Names is what the answers come from; [service.Manager] is one.
type Names interface {
	// Resolve says what a name means in the sandbox with this netns cookie.
	Resolve(cookie uint64, name string) service.Answer
	// ResolvePTR names a VIP that the sandbox with this netns cookie may know.
	ResolvePTR(cookie uint64, addr netip.Addr) (name string, ok bool)
	// Unread reports whether addr is an endpoint's whose names are still to come.
	Unread(addr netip.Addr) bool
	// Changed returns a channel that is closed when any of these may answer differently.
	Changed() <-chan struct{}
}

// Sandbox is a network namespace that gets a listener.
type Sandbox struct {
	Cookie uint64 // of the netns
	Key    string // path of the netns
}

// Network opens sockets inside sandboxes.
type Network interface {
	// Listen opens a UDP and a TCP listener on 127.0.0.11 at one and the same free port; [Listen]
	// does, called inside the netns.
	Listen(Sandbox) (net.PacketConn, net.Listener, error)
	// Dial connects to the engine's resolver at 127.0.0.11:53 over network, "udp" or "tcp", with a
	// socket that our own rewriting leaves alone.
	Dial(ctx context.Context, sandbox Sandbox, network string) (net.Conn, error)
}

// The limits of a sandbox. A flood beyond them is dropped, as any resolver does: clients ask again.
const (
	maxForwards = 128 // queries that wait for the engine, over UDP
	maxStreams  = 32  // TCP connections
	maxIdle     = 4   // upstream UDP sockets kept for the next query
)

// The times of a query. The engine asks up to three name servers, 4 s each, and says when none of them answers: whoever gives up before it
// never hears of the second one's answer.
const (
	upstreamTimeout = 13 * time.Second
	unreadTimeout   = 500 * time.Millisecond
	idleTimeout     = 10 * time.Second // of a TCP connection
)

// ttl of answers, in seconds: as long as a client may miss that a name has come or gone.
const ttl = 5

// Server has a listener in each of its sandboxes.
type Server struct {
	names Names
	net   Network

	counts    counts
	mu        sync.Mutex
	closed    bool
	sandboxes map[uint64]*resolver
}

// New returns a server without sandboxes.
func New(names Names, network Network) *Server {
	return &Server{names: names, net: network, sandboxes: map[uint64]*resolver{}}
}

// Add opens the listeners of a sandbox and returns their port, in host byte order. A sandbox that has
// some keeps them.
func (s *Server) Add(sandbox Sandbox) (port uint16, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, errors.New("the DNS server is closed")
	}
	if r := s.sandboxes[sandbox.Cookie]; r != nil {
		return r.port, nil
	}
	udp, tcp, err := s.net.Listen(sandbox)
	if err != nil {
		return 0, fmt.Errorf("listen for DNS in netns %s: %w", sandbox.Key, err)
	}
	port, err = samePort(udp, tcp)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("listen for DNS in netns %s: %w", sandbox.Key, err), udp.Close(), tcp.Close())
	}
	r := newResolver(sandbox, s.names, s.net, udp, tcp, port, &s.counts)
	s.sandboxes[sandbox.Cookie] = r
	r.start()
	return port, nil
}

// Sandboxes counts those that it answers in.
func (s *Server) Sandboxes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sandboxes)
}

// Port is where a sandbox's names are answered; false if they are not.
func (s *Server) Port(cookie uint64) (uint16, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.sandboxes[cookie]
	if r == nil {
		return 0, false
	}
	return r.port, true
}

func samePort(udp net.PacketConn, tcp net.Listener) (uint16, error) {
	u, ok1 := udp.LocalAddr().(*net.UDPAddr)
	t, ok2 := tcp.Addr().(*net.TCPAddr)
	if !ok1 || !ok2 || u.Port != t.Port {
		return 0, fmt.Errorf("UDP %s and TCP %s are not one port", udp.LocalAddr(), tcp.Addr())
	}
	return uint16(u.Port), nil
}

// Remove closes the listeners of a sandbox, and with them its queries. One without is no error.
func (s *Server) Remove(cookie uint64) {
	s.mu.Lock()
	r := s.sandboxes[cookie]
	delete(s.sandboxes, cookie)
	s.mu.Unlock()
	if r != nil {
		r.stop()
	}
}

// Close removes every sandbox; none can be added afterwards.
func (s *Server) Close() {
	s.mu.Lock()
	all := s.sandboxes
	s.sandboxes, s.closed = map[uint64]*resolver{}, true
	s.mu.Unlock()
	for _, r := range all {
		r.stop()
	}
}

// listenTries is how often [Listen] looks for a port that is free for both protocols.
const listenTries = 16

// Listen opens a UDP and a TCP listener on addr at one and the same free port, in the netns of the
// calling thread.
func Listen(addr netip.Addr) (net.PacketConn, net.Listener, error) {
	var last error
	for range listenTries {
		tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		if err != nil {
			return nil, nil, err
		}
		port := tcp.Addr().(*net.TCPAddr).AddrPort().Port()
		udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, port)))
		if err == nil {
			return udp, tcp, nil
		}
		last = errors.Join(err, tcp.Close())
	}
	return nil, nil, fmt.Errorf("no port of %s is free for both UDP and TCP: %w", addr, last)
}
