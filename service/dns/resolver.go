// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// resolver serves one sandbox.
type resolver struct {
	sandbox Sandbox
	names   Names
	net     Network
	udp     net.PacketConn
	tcp     net.Listener
	port    uint16
	counts  *counts

	ctx      context.Context // ends with the sandbox
	cancel   context.CancelFunc
	wait     sync.WaitGroup
	forwards chan struct{} // one token per query that waits for the engine
	streams  chan struct{} // one token per TCP connection
	idle     chan net.Conn // upstream UDP sockets without a query
}

func newResolver(sandbox Sandbox, names Names, network Network, udp net.PacketConn, tcp net.Listener, port uint16, c *counts) *resolver {
	ctx, cancel := context.WithCancel(context.Background())
	return &resolver{
		sandbox: sandbox, names: names, net: network, udp: udp, tcp: tcp, port: port, counts: c,
		ctx: ctx, cancel: cancel,
		forwards: make(chan struct{}, maxForwards),
		streams:  make(chan struct{}, maxStreams),
		idle:     make(chan net.Conn, maxIdle),
	}
}

// start begins to serve; stop undoes it and returns when nothing of it runs any more.
func (r *resolver) start() {
	r.wait.Go(r.serveUDP)
	r.wait.Go(r.serveTCP)
}

func (r *resolver) stop() {
	r.cancel()
	r.udp.Close()
	r.tcp.Close()
	r.wait.Wait()
	for {
		select {
		case c := <-r.idle:
			c.Close()
		default:
			return
		}
	}
}

// serveUDP answers what is ours itself, which needs no waiting, and lets a bounded number of
// goroutines ask the engine.
func (r *resolver) serveUDP() {
	buf := make([]byte, dns.MaxMsgSize)
	for {
		n, from, err := r.udp.ReadFrom(buf)
		if err != nil {
			if r.over(err) {
				return
			}
			continue
		}
		reply, forward := r.answer(buf[:n], true)
		if reply != nil {
			r.send(reply, from)
		}
		if !forward {
			continue
		}
		select {
		case r.forwards <- struct{}{}:
		default:
			r.counts[dropped].Add(1)
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		r.wait.Go(func() {
			defer func() { <-r.forwards }()
			if reply := r.forward(query, true, r.exchangeUDP); reply != nil {
				r.send(reply, from)
			}
		})
	}
}

// send writes a datagram. One that cannot be written is as good as lost on the way.
func (r *resolver) send(reply []byte, to net.Addr) {
	_, _ = r.udp.WriteTo(reply, to)
}

// over reports whether a listener's error ends its loop; any other is waited out.
func (r *resolver) over(err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return true
	}
	select {
	case <-r.ctx.Done():
		return true
	case <-time.After(10 * time.Millisecond):
		return false
	}
}

func (r *resolver) serveTCP() {
	for {
		conn, err := r.tcp.Accept()
		if err != nil {
			if r.over(err) {
				return
			}
			continue
		}
		select {
		case r.streams <- struct{}{}:
			r.wait.Go(func() {
				defer func() { <-r.streams }()
				r.serveStream(conn)
			})
		default:
			r.counts[dropped].Add(1)
			conn.Close()
		}
	}
}

// serveStream answers the queries of a TCP connection one after another. Those for the engine share
// one connection to it.
func (r *resolver) serveStream(conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(r.ctx, func() { conn.Close() })()
	up := &upstream{r: r}
	defer up.close()
	client := &dns.Conn{Conn: conn}
	for r.ctx.Err() == nil {
		if err := conn.SetDeadline(time.Now().Add(idleTimeout)); err != nil {
			return
		}
		query, err := client.ReadMsgHeader(nil)
		if err != nil {
			return
		}
		reply, forward := r.answer(query, false)
		if forward {
			reply = r.forward(query, false, up.exchange)
		}
		if reply == nil {
			return
		}
		// The answer may have taken long: its way back has a time of its own.
		if err := conn.SetDeadline(time.Now().Add(idleTimeout)); err != nil {
			return
		}
		if _, err := client.Write(reply); err != nil {
			return
		}
	}
}

// exchangeUDP asks the engine over a socket that no other query uses meanwhile, so that ids need not
// be changed.
func (r *resolver) exchangeUDP(ctx context.Context, query []byte) ([]byte, error) {
	select {
	case conn := <-r.idle:
		reply, err := r.exchangeOn(ctx, conn, query)
		if err == nil || ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return reply, err
		}
		// The socket told of an engine that was away before; ask the one that is there now.
	default:
	}
	conn, err := r.net.Dial(ctx, r.sandbox, "udp")
	if err != nil {
		return nil, err
	}
	return r.exchangeOn(ctx, conn, query)
}

// exchangeOn keeps the socket for the next query, unless a late reply may still come to it.
func (r *resolver) exchangeOn(ctx context.Context, conn net.Conn, query []byte) ([]byte, error) {
	reply, err := exchange(ctx, datagrams{conn, replySize(query)}, query)
	if err != nil {
		conn.Close()
		return nil, err
	}
	select {
	case r.idle <- conn:
	default:
		conn.Close()
	}
	return reply, nil
}

// upstream is a TCP connection to the engine that opens with its first query.
type upstream struct {
	r    *resolver
	conn net.Conn
}

func (u *upstream) exchange(ctx context.Context, query []byte) ([]byte, error) {
	reused := u.conn != nil
	reply, err := u.try(ctx, query)
	if err != nil && reused && ctx.Err() == nil {
		// The engine may close a connection between two queries.
		return u.try(ctx, query)
	}
	return reply, err
}

func (u *upstream) try(ctx context.Context, query []byte) (reply []byte, err error) {
	if u.conn == nil {
		if u.conn, err = u.r.net.Dial(ctx, u.r.sandbox, "tcp"); err != nil {
			u.conn = nil
			return nil, err
		}
	}
	reply, err = exchange(ctx, stream{&dns.Conn{Conn: u.conn}}, query)
	if err != nil {
		u.close()
	}
	return reply, err
}

func (u *upstream) close() {
	if u.conn != nil {
		u.conn.Close()
		u.conn = nil
	}
}

// wire carries whole messages.
type wire interface {
	SetDeadline(time.Time) error
	Write([]byte) (int, error)
	read() ([]byte, error)
}

// datagrams is a wire over UDP.
type datagrams struct {
	net.Conn
	size int // of the largest reply
}

func (d datagrams) read() ([]byte, error) {
	buf := make([]byte, d.size)
	n, err := d.Read(buf)
	return buf[:n], err
}

// stream is a wire over TCP.
type stream struct{ *dns.Conn }

func (s stream) read() ([]byte, error) { return s.ReadMsgHeader(nil) }

// replySize is the room for the reply to a query: what its sender can take, and some for an engine
// that does not keep to that.
func replySize(query []byte) int {
	const room = 4096
	var m dns.Msg
	if m.Unpack(query) == nil {
		if opt := m.IsEdns0(); opt != nil {
			return max(room, int(opt.UDPSize()))
		}
	}
	return room
}

// past is a deadline that ends whatever waits.
var past = time.Unix(1, 0)

// exchange sends a query and returns the message that answers it, both as they are on the wire.
func exchange(ctx context.Context, w wire, query []byte) ([]byte, error) {
	deadline, _ := ctx.Deadline()
	if err := w.SetDeadline(deadline); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = w.SetDeadline(past) })()
	if _, err := w.Write(query); err != nil {
		return nil, err
	}
	for {
		reply, err := w.read()
		if err != nil {
			return nil, err
		}
		if matches(query, reply) {
			return reply, nil
		}
	}
}

// matches reports whether reply has the id of query; a stray datagram need not.
func matches(query, reply []byte) bool {
	return len(query) >= headerSize && len(reply) >= headerSize && query[0] == reply[0] && query[1] == reply[1]
}
