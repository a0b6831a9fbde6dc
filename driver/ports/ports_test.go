// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	loop4 = netip.MustParseAddr("127.0.0.1")
	loop6 = netip.IPv6Loopback()
	any4  = netip.IPv4Unspecified()
	any6  = netip.IPv6Unspecified()
)

func newHolder(t testing.TB, set ...func(*limits)) *Holder {
	log := logrus.New()
	log.SetOutput(io.Discard)
	h, err := New(func(int) error { return nil }, log)
	require.NoError(t, err)
	for _, s := range set {
		s(&h.limits)
	}
	t.Cleanup(h.Close)
	return h
}

// hold holds a free port of all addrs, and returns its number. The zero Addr is every address of both families.
func hold(t testing.TB, h *Holder, protocol string, via netip.AddrPort, addrs ...netip.Addr) uint16 {
	if addrs[0] == (netip.Addr{}) {
		number := unused(t, protocol)
		require.NoError(t, h.HoldEvery(protocol, number, via, via))
		return number
	}
	number := unused(t, protocol)
	for _, a := range addrs {
		require.NoError(t, h.Hold(Port{netip.AddrPortFrom(a, number), protocol}, via))
	}
	return number
}

// lastNumber is the last port that a test took: below those that the kernel gives to connections of other programs.
var lastNumber atomic.Uint32

// unused is the number of a port that nobody has, nor gets while the test runs.
func unused(t testing.TB, protocol string) uint16 {
	lastNumber.CompareAndSwap(0, 10000+uint32(os.Getpid())%10000)
	for range 1000 {
		number := uint16(lastNumber.Add(1))
		if c, err := take(Port{netip.AddrPortFrom(any6, number), protocol}); err == nil {
			c.Close()
			return number
		}
	}
	t.Fatal("no port is free")
	return 0
}

// take binds a port as any process would: of IPv6 for both families.
func take(p Port) (io.Closer, error) {
	if p.Protocol == "udp" {
		return net.ListenPacket("udp", p.Addr.String())
	}
	return net.Listen("tcp", p.Addr.String())
}

func TestHoldAndRelease(t *testing.T) {
	for _, protocol := range []string{"tcp", "udp"} {
		for _, addrs := range [][]netip.Addr{{any4}, {any6}, {any4, any6}, {loop4}, {loop6}, {loop4, loop6}} {
			t.Run(fmt.Sprint(protocol, addrs), func(t *testing.T) {
				h := newHolder(t)
				number := hold(t, h, protocol, netip.AddrPort{}, addrs...)
				for _, a := range addrs {
					p := Port{netip.AddrPortFrom(a, number), protocol}
					require.NoError(t, h.Hold(p, netip.AddrPort{}), "held already")
					_, err := take(p)
					require.Error(t, err, "nobody else takes %s", p)
				}
				for _, a := range addrs {
					p := Port{netip.AddrPortFrom(a, number), protocol}
					h.Release(p)
					h.Release(p)
				}
				for _, a := range addrs {
					other, err := take(Port{netip.AddrPortFrom(a, number), protocol})
					require.NoError(t, err)
					other.Close()
				}
			})
		}
	}
}

// TestPlacesAreReused releases some of many ports and holds others: each goes on leading to where it did.
func TestPlacesAreReused(t *testing.T) {
	h := newHolder(t)
	via := map[uint16]netip.AddrPort{}
	for i := range uint16(50) {
		v := netip.AddrPortFrom(loop4, i+1)
		via[hold(t, h, "udp", v, loop4)] = v
	}
	for number := range via {
		if number%2 == 0 {
			h.Release(Port{netip.AddrPortFrom(loop4, number), "udp"})
			delete(via, number)
		}
	}
	for i := range uint16(50) {
		v := netip.AddrPortFrom(loop6, i+1)
		via[hold(t, h, "udp", v, loop4)] = v
	}
	assert.Len(t, h.held, len(via))
	for number, v := range via {
		s := h.socket(h.held[keyOf(netip.AddrPortFrom(loop4, number), true)])
		assert.Equal(t, v, s.via[0].addrPort())
		assert.Equal(t, number, s.port)
	}
}

// TestHoldEvery holds both families by one socket, which goes with the second of them.
func TestHoldEvery(t *testing.T) {
	for _, protocol := range []string{"tcp", "UDP"} {
		t.Run(protocol, func(t *testing.T) {
			h := newHolder(t)
			number := unused(t, protocol)
			p4, p6 := Port{netip.AddrPortFrom(any4, number), strings.ToLower(protocol)}, Port{netip.AddrPortFrom(any6, number), strings.ToLower(protocol)}
			files := restingFiles(t)
			for range 2 {
				require.NoError(t, h.HoldEvery(protocol, number, netip.AddrPort{}, netip.AddrPort{}))
				require.NoError(t, h.Hold(p6, netip.AddrPort{}))
				assert.Equal(t, files+1, openFiles(t))
			}
			for _, p := range []Port{p4, p6} {
				_, err := take(p)
				require.Error(t, err, p)
			}
			h.Release(p4)
			h.Release(p4)
			require.NoError(t, h.HoldEvery(protocol, number, netip.AddrPort{}, netip.AddrPort{}), "half of it is held")
			h.Release(p6)
			require.NoError(t, h.Hold(p6, netip.AddrPort{}))
			assert.Equal(t, files+1, openFiles(t))
			h.Release(p6)
			h.Release(p4)
			require.NoError(t, h.Hold(p6, netip.AddrPort{}))
			require.NoError(t, h.HoldEvery(protocol, number, netip.AddrPort{}, netip.AddrPort{}), "IPv6 is held by itself")
			assert.Equal(t, files+2, openFiles(t))
			h.Release(p4)
			h.Release(p6)
			assert.Equal(t, files, openFiles(t))
			for _, p := range []Port{p4, p6} {
				other, err := take(p)
				require.NoError(t, err)
				err = h.HoldEvery(protocol, number, netip.AddrPort{}, netip.AddrPort{})
				require.ErrorIs(t, err, ErrInUse)
				assert.ErrorContains(t, err, fmt.Sprintf("(pid %d)", os.Getpid()))
				other.Close()
			}
		})
	}
}

// TestConflict has a process of the host hold the port, which is this one.
func TestConflict(t *testing.T) {
	name, err := os.ReadFile("/proc/self/comm")
	require.NoError(t, err)
	process := fmt.Sprintf("in use by %s (pid %d): stop it, or choose another port", strings.TrimSpace(string(name)), os.Getpid())
	for _, c := range []struct {
		theirs string
		ours   netip.Addr
	}{
		{"127.0.0.1:0", loop4},
		{"127.0.0.1:0", any4},
		{"0.0.0.0:0", any4},
		{"0.0.0.0:0", loop4},
		{"[::]:0", any4}, // of both families
		{"[::]:0", any6},
		{"[::]:0", loop6},
		{"[::1]:0", loop6},
	} {
		for _, protocol := range []string{"tcp", "udp"} {
			t.Run(fmt.Sprintf("%s %s, ours %s", protocol, c.theirs, c.ours), func(t *testing.T) {
				h := newHolder(t)
				other, err := take(Port{netip.MustParseAddrPort(c.theirs), protocol})
				require.NoError(t, err)
				defer other.Close()
				var number uint16
				switch o := other.(type) {
				case net.Listener:
					number = uint16(o.Addr().(*net.TCPAddr).Port)
				case net.PacketConn:
					number = uint16(o.LocalAddr().(*net.UDPAddr).Port)
				}
				p := Port{netip.AddrPortFrom(c.ours, number), protocol}
				err = h.Hold(p, netip.AddrPort{})
				require.ErrorIs(t, err, ErrInUse)
				assert.Equal(t, "port "+p.String()+" is "+process, err.Error())
				other.Close()
				assert.NoError(t, h.Hold(p, netip.AddrPort{}), "once the process has let go of it")
			})
		}
	}
}

// TestReserved has a process keep the port that does nothing else, as nerdctl's does.
func TestReserved(t *testing.T) {
	server := listen(t, "127.0.0.1:0")
	p := Port{netip.MustParseAddrPort(server.Addr().String()), "tcp"}
	h := newHolder(t)
	require.NotErrorIs(t, h.Hold(p, netip.AddrPort{}), ErrReserved, "a process that may well serve it")
	copied, err := server.(*net.TCPListener).File()
	require.NoError(t, err)
	keeper := exec.Command("sleep", "infinity")
	keeper.ExtraFiles = []*os.File{copied}
	require.NoError(t, keeper.Start())
	defer func() {
		require.NoError(t, keeper.Process.Kill())
		_ = keeper.Wait() // says that it was killed
	}()
	copied.Close()
	server.Close()
	err = h.Hold(p, netip.AddrPort{})
	require.ErrorIs(t, err, ErrInUse)
	require.ErrorIs(t, err, ErrReserved)
}

// TestConflictWithConnection has a connection that goes out from the port, beside a listener elsewhere.
func TestConflictWithConnection(t *testing.T) {
	server := listen(t, "127.0.0.1:0")
	conn, err := net.Dial("tcp", server.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	h := newHolder(t)
	err = h.Hold(Port{netip.AddrPortFrom(loop4, uint16(conn.LocalAddr().(*net.TCPAddr).Port)), "tcp"}, netip.AddrPort{})
	require.ErrorIs(t, err, ErrInUse)
	assert.ErrorContains(t, err, fmt.Sprintf("(pid %d)", os.Getpid()))
}

func TestWhoHasThePort(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 100 1
   1: 0200007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1
   2: 0100007F:1F90 0100007F:D433 06 00000000:00000000 03:00000E33 00000000     0        0 0 3
   3: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 102 1
   4: nonsense
`
	for port, want := range map[string]string{
		"127.0.0.1:8080": "100", // the listener is another address's
		"127.0.0.2:8080": "101",
		"0.0.0.0:8080":   "101",
		"127.0.0.3:8080": "",
		"10.0.0.1:8081":  "102",
		"[::1]:8081":     "",
		"127.0.0.1:8082": "",
	} {
		inode, _ := scan(strings.NewReader(table), Port{netip.MustParseAddrPort(port), "tcp"})
		assert.Equal(t, want, inode, port)
	}
}

// TestHooksInTheWay has what the hooks do while a daemon is away: they refuse the port until a socket is exempt.
func TestHooksInTheWay(t *testing.T) {
	h := newHolder(t)
	hook := listen(t, "127.0.0.1:0")
	p := Port{hook.Addr().(*net.TCPAddr).AddrPort(), "tcp"}
	h.exempt = func(int) error { return os.ErrPermission }
	assert.EqualError(t, h.Hold(p, netip.AddrPort{}), "hold the port "+p.String()+": permission denied")
	h.exempt = func(int) error { return hook.Close() }
	require.NoError(t, h.Hold(p, netip.AddrPort{}))
}

func TestHoldAfterClose(t *testing.T) {
	h := newHolder(t)
	h.Close()
	assert.ErrorIs(t, h.Hold(Port{netip.AddrPortFrom(loop4, 9), "udp"}, netip.AddrPort{}), os.ErrClosed)
}

// TestCloseLeavesNothing closes a holder whose ports are in use.
func TestCloseLeavesNothing(t *testing.T) {
	tcp, udp := echo(t, "127.0.0.1:0"), echoPackets(t, "127.0.0.1:0")
	runtime.GC() // closes the runtime's own pipes of other tests
	files := openFiles(t)
	h := newHolder(t)
	var clients []net.Conn
	for range 5 {
		clients = append(clients,
			exchange(t, "tcp", loop4, hold(t, h, "tcp", tcp, any4, any6)),
			exchange(t, "udp", loop6, hold(t, h, "udp", udp, netip.Addr{})))
	}
	h.Close()
	for _, c := range clients {
		if _, is := c.(*net.TCPConn); is {
			_, err := c.Read(make([]byte, 1))
			assert.Error(t, err, "the client is told")
		}
		c.Close()
	}
	assert.Empty(t, h.own)
	stacks := make([]byte, 1<<20)
	assert.Eventually(t, func() bool {
		runtime.GC()
		return openFiles(t) <= files && !bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("(*Holder)."))
	}, 10*time.Second, 5*time.Millisecond)
}

func openFiles(t require.TestingT) int {
	list, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(list)
}

// restingFiles is openFiles once what other tests have let go of is closed, which the collector may have to do.
func restingFiles(t require.TestingT) int {
	runtime.GC()
	files, same := openFiles(t), 0
	for same < 10 {
		time.Sleep(5 * time.Millisecond)
		if now := openFiles(t); now == files {
			same++
		} else {
			files, same = now, 0
		}
	}
	return files
}

// BenchmarkHold prints what a container with a thousand ports of both families costs: the time to hold and to
// release them all, and what the process has grown by.
func BenchmarkHold(b *testing.B) {
	const first, count = 20000, 1000
	h := newHolder(b)
	all := make([]Port, 0, 2*count)
	for i := range uint16(count) {
		all = append(all, Port{netip.AddrPortFrom(any4, first+i), "tcp"}, Port{netip.AddrPortFrom(any6, first+i), "tcp"})
	}
	var held, released time.Duration
	var grown uint64
	for b.Loop() {
		before := resident(b)
		start := time.Now()
		for i := range uint16(count) {
			via := netip.AddrPortFrom(loop4, first+i)
			if err := h.HoldEvery("tcp", first+i, via, via); err != nil {
				b.Fatal(err)
			}
		}
		held += time.Since(start)
		grown = max(grown, max(resident(b), before)-before)
		start = time.Now()
		for _, p := range all {
			h.Release(p)
		}
		released += time.Since(start)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(held.Seconds()*1000/float64(b.N), "ms/hold")
	b.ReportMetric(released.Seconds()*1000/float64(b.N), "ms/release")
	b.ReportMetric(float64(grown)/1024, "KiB")
}

// resident is the process's memory in bytes.
func resident(t require.TestingT) uint64 {
	text, err := os.ReadFile("/proc/self/statm")
	require.NoError(t, err)
	var size, pages uint64
	_, err = fmt.Fscan(bytes.NewReader(text), &size, &pages)
	require.NoError(t, err)
	return pages * uint64(os.Getpagesize())
}
