// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func listen(t testing.TB, at string) net.Listener {
	l, err := net.Listen("tcp", at)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// echo answers connections until their client has said everything, and then says bye.
func echo(t testing.TB, at string) netip.AddrPort {
	l := listen(t, at)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
				_, _ = io.WriteString(c, "bye")
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// echoPackets answers datagrams, with the address it saw them come from first.
func echoPackets(t testing.TB, at string) netip.AddrPort {
	c, err := net.ListenPacket("udp", at)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, maxPacket)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(append([]byte(from.String()+" "), b[:n]...), from)
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func dial(t testing.TB, network string, to netip.AddrPort) net.Conn {
	c, err := net.Dial(network, to.String())
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	return c
}

// exchange says hello to an echo.
func exchange(t testing.TB, network string, to netip.Addr, port uint16) net.Conn {
	c := dial(t, network, netip.AddrPortFrom(to, port))
	_, answer := say(t, c, "hello")
	require.Equal(t, "hello", answer)
	return c
}

// say sends a word and returns what comes back, and for datagrams from where the echo saw it come.
func say(t testing.TB, c net.Conn, word string) (from, answer string) {
	_, err := io.WriteString(c, word)
	require.NoError(t, err)
	b := make([]byte, 200)
	n, err := c.Read(b)
	require.NoError(t, err)
	answer = string(b[:n])
	if _, is := c.(*net.UDPConn); is {
		from, answer, _ = strings.Cut(answer, " ")
	}
	return from, answer
}

// idle waits until nothing is being passed on.
func idle(t *testing.T, h *Holder) {
	assert.Eventually(t, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.splices == 0 && len(h.own) == 0 && len(h.flows.byClient) == 0
	}, 10*time.Second, time.Millisecond)
}

func TestConnectionsArePassedOn(t *testing.T) {
	for name, c := range map[string]struct {
		server   string
		held, to netip.Addr
	}{
		"IPv4":                   {"127.0.0.1:0", loop4, loop4},
		"of every address":       {"127.0.0.1:0", any4, netip.MustParseAddr("127.0.0.9")},
		"IPv6":                   {"[::1]:0", any6, loop6},
		"an IPv6 client to IPv4": {"127.0.0.1:0", any6, loop6},
		"an IPv4 client to IPv6": {"[::1]:0", any4, loop4},
		"both, from IPv4":        {"127.0.0.1:0", netip.Addr{}, netip.MustParseAddr("127.0.0.9")},
		"both, from IPv6":        {"127.0.0.1:0", netip.Addr{}, loop6},
		"both, to IPv6":          {"[::1]:0", netip.Addr{}, netip.MustParseAddr("127.0.0.9")},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHolder(t)
			port := hold(t, h, "tcp", echo(t, c.server), c.held)
			client := dial(t, "tcp", netip.AddrPortFrom(c.to, port))
			long := strings.Repeat("x", 5<<20)
			go func() {
				_, _ = io.WriteString(client, long)
				_ = client.(*net.TCPConn).CloseWrite()
			}()
			answer, err := io.ReadAll(client)
			require.NoError(t, err)
			assert.True(t, string(answer) == long+"bye", "%d bytes", len(answer))
			idle(t, h)
		})
	}
}

// TestClientOfLoopback is what the hooks leave alone: a socket that is bound to a loopback address.
func TestClientOfLoopback(t *testing.T) {
	h := newHolder(t)
	port := hold(t, h, "tcp", echo(t, "127.0.0.1:0"), any4)
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: loop4.AsSlice()}}
	client, err := from.Dial("tcp", netip.AddrPortFrom(loop4, port).String())
	require.NoError(t, err)
	defer client.Close()
	_, answer := say(t, client, "hello")
	assert.Equal(t, "hello", answer)
}

func TestBrokenConnections(t *testing.T) {
	reset := func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0); c.Close() }
	t.Run("the server is not there", func(t *testing.T) {
		h := newHolder(t)
		gone := listen(t, "127.0.0.1:0")
		gone.Close()
		client := dial(t, "tcp", netip.AddrPortFrom(loop4, hold(t, h, "tcp", gone.Addr().(*net.TCPAddr).AddrPort(), any4)))
		_, err := client.Read(make([]byte, 1))
		assert.ErrorIs(t, err, io.EOF)
		idle(t, h)
	})
	t.Run("nothing is behind the port", func(t *testing.T) {
		h := newHolder(t)
		client := dial(t, "tcp", netip.AddrPortFrom(loop4, hold(t, h, "tcp", netip.AddrPort{}, any4)))
		_, err := client.Read(make([]byte, 1))
		assert.ErrorIs(t, err, io.EOF)
	})
	t.Run("the server breaks off", func(t *testing.T) {
		h := newHolder(t)
		server := listen(t, "127.0.0.1:0")
		client := dial(t, "tcp", netip.AddrPortFrom(loop4, hold(t, h, "tcp", server.Addr().(*net.TCPAddr).AddrPort(), any4)))
		accepted, err := server.Accept()
		require.NoError(t, err)
		reset(accepted)
		_, err = client.Read(make([]byte, 1))
		assert.Error(t, err)
		idle(t, h) // although the client has not hung up
	})
	t.Run("the client breaks off", func(t *testing.T) {
		h := newHolder(t)
		server := listen(t, "127.0.0.1:0")
		client := dial(t, "tcp", netip.AddrPortFrom(loop4, hold(t, h, "tcp", server.Addr().(*net.TCPAddr).AddrPort(), any4)))
		accepted, err := server.Accept()
		require.NoError(t, err)
		defer accepted.Close()
		reset(client)
		_, err = accepted.Read(make([]byte, 1))
		assert.Error(t, err)
		idle(t, h)
	})
}

// TestOwnConnectionsComeToAnEnd has hooks that translate nothing: what is passed on comes back.
func TestOwnConnectionsComeToAnEnd(t *testing.T) {
	h := newHolder(t)
	for _, held := range []netip.Addr{loop4, any4} {
		number := unused(t, "tcp")
		via := netip.AddrPortFrom(loop4, number)
		require.NoError(t, h.Hold(Port{netip.AddrPortFrom(held, number), "tcp"}, via))
		client := dial(t, "tcp", via)
		_, err := client.Read(make([]byte, 1))
		assert.True(t, errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET), "%v", err)
		client.Close()
		idle(t, h)
	}
	t.Run("datagrams", func(t *testing.T) {
		h := newHolder(t, func(l *limits) { l.idle = 50 * time.Millisecond })
		number := unused(t, "udp")
		via := netip.AddrPortFrom(loop4, number)
		require.NoError(t, h.Hold(Port{netip.AddrPortFrom(any4, number), "udp"}, via))
		_, err := io.WriteString(dial(t, "udp", via), "hello")
		require.NoError(t, err)
		assert.Eventually(t, func() bool { return flowsOf(h) == 1 }, 10*time.Second, time.Millisecond)
		idle(t, h)
		assert.Less(t, h.last, int32(4), "one flow, and no more than the port had")
	})
}

// TestTooManyConnections has as many as are allowed, and one more.
func TestTooManyConnections(t *testing.T) {
	h := newHolder(t, func(l *limits) { l.splices = 2 })
	port := hold(t, h, "tcp", echo(t, "127.0.0.1:0"), any4)
	first := exchange(t, "tcp", loop4, port)
	exchange(t, "tcp", loop4, port)
	_, err := dial(t, "tcp", netip.AddrPortFrom(loop4, port)).Read(make([]byte, 1))
	assert.Error(t, err, "refused")
	first.Close()
	assert.Eventually(t, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.splices == 1
	}, 10*time.Second, time.Millisecond)
	exchange(t, "tcp", loop4, port)
}

// TestSlowServersHoldNobodyUp has a server that takes no connection, and one that reads nothing.
func TestSlowServersHoldNobodyUp(t *testing.T) {
	h := newHolder(t)
	deaf := listen(t, "127.0.0.1:0") // connections stay in its backlog
	port := hold(t, h, "tcp", deaf.Addr().(*net.TCPAddr).AddrPort(), any4)
	client := dial(t, "tcp", netip.AddrPortFrom(loop4, port))
	require.NoError(t, client.SetDeadline(time.Now().Add(100*time.Millisecond)))
	_, err := io.Copy(client, endless{})
	require.Error(t, err, "every buffer is full")
	for range 100 {
		other := hold(t, h, "tcp", echo(t, "127.0.0.1:0"), any4)
		exchange(t, "tcp", loop4, other).Close()
		h.Release(Port{netip.AddrPortFrom(any4, other), "tcp"})
	}
	h.Release(Port{netip.AddrPortFrom(any4, port), "tcp"})
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }
