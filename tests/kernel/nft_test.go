// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/nft"
)

// maps are services in memory.
type maps struct {
	services []bpf.Service
	backends []bpf.Backend
}

func (m *maps) Services() ([]bpf.Service, error) { return m.services, nil }
func (m *maps) Backends() ([]bpf.Backend, error) { return m.backends, nil }

// sandbox is a namespace with the addresses 10.0.0.2, 10.0.0.3 and fd00::2, where each TCP connection and datagram to port 80 or
// 8080 is answered with where it arrived, and that has a way to the service pools.
func sandbox(t *testing.T, name string) string {
	t.Helper()
	path := netns(t, name)
	for _, args := range []string{
		"link set lo up", "link add d0 type veth peer name d1", "link set d0 up", "link set d1 up",
		"addr add 10.0.0.2/24 dev d0", "addr add 10.0.0.3/24 dev d0", "-6 addr add fd00::2/64 dev d0 nodad",
		"route add 10.96.0.0/16 via 10.0.0.1", "-6 route add fd6d:7374:10::/96 via fd00::1",
	} {
		run(t, "ip -n "+name+" "+args)
	}
	require.NoError(t, host.Do(path, func() error {
		for _, port := range []int{80, 8080} {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					fmt.Fprintln(c, c.LocalAddr())
					c.Close()
				}
			}()
		}
		for _, addr := range []string{"10.0.0.2:80", "10.0.0.3:80", "[fd00::2]:80"} {
			c, err := net.ListenPacket("udp", addr)
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
			go func() {
				buf := make([]byte, 64)
				for {
					_, from, err := c.ReadFrom(buf)
					if err != nil {
						return
					}
					_, _ = c.WriteTo([]byte(addr+"\n"), from)
				}
			}()
		}
		return nil
	}))
	return path
}

// ask sends a request in a namespace and returns who answered.
func ask(path, network, addr string) (answer string, err error) {
	err = host.Do(path, func() error {
		c, err := net.DialTimeout(network, addr, 3*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if network == "udp" {
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
		}
		answer, err = bufio.NewReader(c).ReadString('\n')
		return err
	})
	return answer, err
}

var servicePools = [2]netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd6d:7374:10::/96")}

func newNFT(m *maps) *nft.Tables {
	return nft.New(nft.Options{Services: m, Pools: servicePools, Cookie: host.Cookie, Forget: host.ForgetFlows})
}

func frontend(addr string, port uint16, p bpf.Protocol) bpf.Frontend {
	return bpf.Frontend{Addr: netip.MustParseAddr(addr), Port: port, Protocol: p}
}

func TestNFTTranslatesAsTheProgramsDo(t *testing.T) {
	begin(t)
	path := sandbox(t, "one")
	m := &maps{
		backends: []bpf.Backend{
			{ID: 1, Addr: netip.MustParseAddr("10.0.0.2")}, {ID: 2, Addr: netip.MustParseAddr("10.0.0.3")},
			{ID: 3, Addr: netip.MustParseAddr("10.0.0.3"), Port: 8080}, {ID: 4, Addr: netip.MustParseAddr("fd00::2")},
		},
		services: []bpf.Service{
			{Frontend: frontend("10.96.1.1", 0, 0), ID: 1, Network: 7, Slots: []uint32{1}},
			{Frontend: frontend("10.96.1.1", 81, 0), ID: 1, Network: 7, Slots: []uint32{3}},
			{Frontend: frontend("10.96.1.1", 81, bpf.ProtocolUDP), ID: 1, Network: 7},
			{Frontend: frontend("10.96.1.2", 0, 0), ID: 2, Network: 7, Slots: []uint32{1, 2, 2, 3}},
			{Frontend: frontend("10.96.1.3", 0, 0), ID: 3, Network: 7},
			{Frontend: frontend("10.96.1.4", 0, 0), ID: 4, Network: 8, Slots: []uint32{1}},
			{Frontend: frontend("10.96.1.5", 0, 0), ID: 5, Network: 7, Slots: []uint32{1, 2}, Affinity: 60},
			{Frontend: frontend("fd6d:7374:10::1", 0, 0), ID: 6, Network: 7, Slots: []uint32{4}},
		},
	}
	tables := newNFT(m)
	before := run(t, "nft list ruleset")
	require.NoError(t, tables.Supported())
	require.Equal(t, before, run(t, "nft list ruleset"))
	cookie, err := host.Cookie(path)
	require.NoError(t, err)
	s := nft.Sandbox{Cookie: cookie, Path: path, Networks: []uint32{7}}
	require.NoError(t, tables.PutSandbox(s))
	for _, tt := range []struct {
		network, addr, want string
		err                 error
	}{
		{"tcp", "10.96.1.1:80", "10.0.0.2:80\n", nil},
		{"udp", "10.96.1.1:80", "10.0.0.2:80\n", nil},
		{"tcp", "10.96.1.1:8080", "10.0.0.2:8080\n", nil},
		{"tcp", "10.96.1.1:81", "10.0.0.3:8080\n", nil},
		{"udp", "10.96.1.1:81", "", syscall.ECONNREFUSED},
		{"tcp", "10.96.1.3:80", "", syscall.ECONNREFUSED},
		{"udp", "10.96.1.3:80", "", syscall.ECONNREFUSED},
		{"tcp", "10.96.1.4:80", "", syscall.ECONNREFUSED},
		{"tcp", "10.96.1.99:80", "", syscall.ECONNREFUSED},
		{"tcp", "[fd6d:7374:10::1]:80", "[fd00::2]:80\n", nil},
		{"udp", "[fd6d:7374:10::1]:80", "[fd00::2]:80\n", nil},
		{"tcp", "[fd6d:7374:10::9]:80", "", syscall.ECONNREFUSED},
	} {
		got, err := ask(path, tt.network, tt.addr)
		require.ErrorIs(t, err, tt.err, "%s %s", tt.network, tt.addr)
		require.Equal(t, tt.want, got, "%s %s", tt.network, tt.addr)
	}
	counts, sticky := map[string]int{}, map[string]int{}
	for range 200 {
		got, err := ask(path, "tcp", "10.96.1.2:80")
		require.NoError(t, err)
		counts[got]++
		got, err = ask(path, "tcp", "10.96.1.5:80")
		require.NoError(t, err)
		sticky[got]++
	}
	require.Len(t, sticky, 1, "one client has one backend")
	require.InDelta(t, 50, counts["10.0.0.2:80\n"], 30)
	require.InDelta(t, 100, counts["10.0.0.3:80\n"], 40)
	require.InDelta(t, 50, counts["10.0.0.3:8080\n"], 30, "with a port of its own")

	require.NoError(t, tables.DeleteSandbox(cookie, path))
	require.Empty(t, run(t, "ip netns exec one nft list ruleset"))
}

func TestNFTFollowsChanges(t *testing.T) {
	begin(t)
	path := sandbox(t, "one")
	m := &maps{backends: []bpf.Backend{{ID: 1, Addr: netip.MustParseAddr("10.0.0.2")}, {ID: 2, Addr: netip.MustParseAddr("10.0.0.3")}}}
	tables := newNFT(m)
	cookie, err := host.Cookie(path)
	require.NoError(t, err)
	require.NoError(t, tables.PutSandbox(nft.Sandbox{Cookie: cookie, Path: path, Networks: []uint32{7}}))
	empty := run(t, "ip netns exec one nft list ruleset")

	s := bpf.Service{Frontend: frontend("10.96.1.1", 0, 0), ID: 1, Network: 7}
	require.NoError(t, tables.PutService(s))
	require.NoError(t, tables.Flush())
	var client net.Conn
	require.NoError(t, host.Do(path, func() (err error) {
		client, err = net.Dial("udp", "10.96.1.1:80")
		return err
	}))
	defer client.Close()
	again := func() (string, error) {
		_ = client.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := client.Write([]byte("x")); err != nil {
			return "", err
		}
		buf := make([]byte, 64)
		n, err := client.Read(buf)
		return string(buf[:n]), err
	}
	_, err = again()
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	for _, step := range []struct {
		slots []uint32
		want  string
	}{{[]uint32{1}, "10.0.0.2:80\n"}, {[]uint32{2}, "10.0.0.2:80\n"}} { // a flow stays with its backend
		s.Slots = step.slots
		require.NoError(t, tables.PutService(s))
		require.NoError(t, tables.Flush())
		got, err := again()
		require.NoError(t, err)
		require.Equal(t, step.want, got)
	}
	require.NoError(t, tables.DeleteBackend(1)) // until that is gone
	got, err := again()
	require.NoError(t, err)
	require.Equal(t, "10.0.0.3:80\n", got)

	require.NoError(t, tables.DeleteService(s.Frontend))
	require.NoError(t, tables.Flush())
	require.Equal(t, empty, run(t, "ip netns exec one nft list ruleset"))

	// somebody inside took it away
	run(t, "ip netns exec one nft flush ruleset")
	require.NoError(t, tables.PutService(s))
	require.NoError(t, tables.Flush())
	got, err = ask(path, "tcp", "10.96.1.1:80")
	require.NoError(t, err)
	require.Equal(t, "10.0.0.3:80\n", got)
	require.NoError(t, tables.DeleteSandbox(cookie, path))
}

func TestNFTTakesTenThousandServicesAtOnce(t *testing.T) {
	begin(t)
	path := sandbox(t, "one")
	m := &maps{}
	for i := range uint32(3) {
		m.backends = append(m.backends, bpf.Backend{ID: i + 1, Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(2 + i%2)})})
	}
	for i := range uint32(10000) {
		f := bpf.Frontend{Addr: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}
		m.services = append(m.services, bpf.Service{Frontend: f, ID: i + 1, Slots: []uint32{1, 2, 3}})
	}
	tables := newNFT(m)
	cookie, err := host.Cookie(path)
	require.NoError(t, err)
	for _, what := range []string{"first", "again"} {
		started := time.Now()
		tables = newNFT(m)
		require.NoError(t, tables.PutSandbox(nft.Sandbox{Cookie: cookie, Path: path}))
		t.Logf("%s: %v", what, time.Since(started))
	}
	started := time.Now()
	require.NoError(t, tables.PutService(m.services[5000]))
	require.NoError(t, tables.Flush())
	t.Logf("one change: %v", time.Since(started))
	got, err := ask(path, "tcp", "10.96.39.15:80")
	require.NoError(t, err)
	require.Contains(t, []string{"10.0.0.2:80\n", "10.0.0.3:80\n"}, got)
	require.NoError(t, tables.DeleteSandbox(cookie, path))
	require.Empty(t, run(t, "ip netns exec one nft list ruleset"))
}

func TestNFTOfTheHost(t *testing.T) {
	begin(t)
	tables := newNFT(&maps{})
	before := run(t, "nft list ruleset")
	ends := []nft.End{
		{Name: "mst1", Kind: nft.Routed, Network: 7, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}},
		{Name: "msb2", Kind: nft.Bridge, Network: 8},
		{Name: "mst2", Kind: nft.Port, Network: 8, Addrs: []netip.Addr{netip.MustParseAddr("10.0.1.2")}},
		{Name: "msh3", Kind: nft.Slave, Network: 9},
	}
	run(t, "iptables -N DOCKER-USER")
	run(t, "iptables -A DOCKER-USER -s 192.0.2.9 -j DROP")
	run(t, "iptables -A DOCKER-USER -j RETURN") // engine 20.10
	t.Cleanup(func() { run(t, "nft flush ruleset") })
	require.NoError(t, tables.SetEnds(ends))
	require.NoError(t, tables.SetEnds(ends))
	require.Equal(t, "-N DOCKER-USER\n-A DOCKER-USER -s 192.0.2.9/32 -j DROP\n"+
		"-A DOCKER-USER -i mst+ -o mst+ -m comment --comment mustang -j ACCEPT\n"+
		"-A DOCKER-USER -i msb2 -o msb2 -m comment --comment mustang -j ACCEPT\n"+
		"-A DOCKER-USER -j RETURN\n", run(t, "iptables -S DOCKER-USER"))
	require.Contains(t, run(t, "nft list table inet mustang"), `elements = { "mst1" . 10.0.0.2 }`)
	require.Contains(t, run(t, "nft list table bridge mustang"), `elements = { "mst2" . 10.0.1.2 }`)
	mended, err := tables.Check()
	require.NoError(t, err)
	require.False(t, mended)
	for _, harm := range []string{"iptables -F DOCKER-USER", "nft delete table inet mustang", "nft delete table bridge mustang"} {
		run(t, harm)
		mended, err = tables.Check()
		require.NoError(t, err)
		require.True(t, mended, harm)
		mended, err = tables.Check()
		require.NoError(t, err)
		require.False(t, mended)
	}
	require.NoError(t, tables.SetEnds(ends[:1]))
	require.NotContains(t, run(t, "nft list tables"), "bridge mustang")
	require.NoError(t, tables.SetEnds(nil))
	require.NotContains(t, run(t, "nft list ruleset"), "mustang")
	run(t, "nft flush ruleset")
	require.Equal(t, before, run(t, "nft list ruleset"))
}

// wire is a packet socket on a device.
func wire(t *testing.T, path, dev string) (fd int) {
	t.Helper()
	require.NoError(t, host.Do(path, func() (err error) {
		kind := binary.NativeEndian.Uint16([]byte{0x86, 0xdd}) // IPv6
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(kind)); err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		d, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3}); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: kind, Ifindex: d.Index})
	}))
	return fd
}

// frame is an IPv6 packet to all nodes of a link. An ICMPv6 message has its target where discovery has it.
func frame(src string, headers []byte, protocol, kind byte, target string) []byte {
	message := append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr(target).AsSlice()...)
	next := protocol
	if len(headers) > 0 {
		next, headers = unix.IPPROTO_HOPOPTS, append([]byte{protocol}, headers[1:]...)
	}
	out := append([]byte{0x33, 0x33, 0, 0, 0, 1}, mac...)
	out = append(out, 0x86, 0xdd, 0x60, 0, 0, 0)
	out = binary.BigEndian.AppendUint16(out, uint16(len(headers)+len(message)))
	out = append(out, next, 255)
	out = append(out, netip.MustParseAddr(src).AsSlice()...)
	out = append(out, netip.MustParseAddr("ff02::1").AsSlice()...)
	return append(append(out, headers...), message...)
}

func TestNFTKeepsEndpointsFromSpeakingAsRoutersAndNeighbours(t *testing.T) {
	begin(t)
	run(t, "ip link add br0 up type bridge mcast_snooping 0")
	t.Cleanup(func() { run(t, "ip link del br0") })
	paths := map[string]string{}
	for _, name := range []string{"mst1", "mst2", "mst3"} {
		paths[name] = netns(t, "of-"+name)
		run(t, "ip link add "+name+" up type veth peer name eth0 netns of-"+name)
		t.Cleanup(func() { run(t, "ip link del "+name) })
		run(t, "ip -n of-"+name+" link set eth0 up")
	}
	run(t, "ip link set mst1 master br0")
	run(t, "ip link set mst2 master br0")
	own := []netip.Addr{netip.MustParseAddr("fd00::2")}
	tables := newNFT(&maps{})
	require.NoError(t, tables.SetEnds([]nft.End{
		{Name: "br0", Kind: nft.Bridge, Network: 7}, {Name: "mst1", Kind: nft.Port, Network: 7, Addrs: own},
		{Name: "mst2", Kind: nft.Port, Network: 7, Addrs: []netip.Addr{netip.MustParseAddr("fd00::3")}},
		{Name: "mst3", Kind: nft.Routed, Network: 8, Addrs: own},
	}))
	t.Cleanup(func() { require.NoError(t, tables.SetEnds(nil)) })

	alert := []byte{0, 0, 5, 2, 0, 0, 1, 0} // as MLD has before its messages
	var passing [][]byte
	spoofed, dropped := uint64(0), func() uint64 { return tables.Drops()["spoofed"] }
	port, routed := wire(t, paths["mst1"], "eth0"), wire(t, paths["mst3"], "eth0")
	listeners := map[string]int{"another container": wire(t, paths["mst2"], "eth0"), "the host": wire(t, "/proc/self/ns/net", "br0")}
	for _, tt := range []struct {
		name           string
		frame          []byte
		passes, routed bool
	}{
		{"router advertisement", frame("fe80::9", nil, unix.IPPROTO_ICMPV6, 134, "::"), false, false},
		{"behind another header", frame("fe80::9", alert, unix.IPPROTO_ICMPV6, 134, "::"), false, false},
		{"from its own address", frame("fd00::2", nil, unix.IPPROTO_ICMPV6, 134, "::"), false, false},
		{"redirect", frame("fe80::9", nil, unix.IPPROTO_ICMPV6, 137, "fd00::3"), false, false},
		{"as a neighbour", frame("fe80::9", nil, unix.IPPROTO_ICMPV6, 136, "fd00::3"), false, true},
		{"as a neighbour, from its own address", frame("fd00::2", nil, unix.IPPROTO_ICMPV6, 136, "fd00::3"), false, true},
		{"as the gateway", frame("fe80::9", nil, unix.IPPROTO_ICMPV6, 136, "fd00::1"), false, true},
		{"cut short", frame("fe80::9", nil, unix.IPPROTO_ICMPV6, 136, "fd00::2")[:14+40+12], false, true},
		{"datagram without an address", frame("fe80::9", nil, unix.IPPROTO_UDP, 53, "::"), false, false},
		{"datagram from a neighbour's", frame("fd00::3", nil, unix.IPPROTO_UDP, 53, "::"), false, false},
		{"datagram", frame("fd00::2", nil, unix.IPPROTO_UDP, 53, "::"), true, true},
		{"router solicitation", frame("fe80::9", nil, unix.IPPROTO_ICMPV6, 133, "::"), true, true},
		{"detection of duplicates", frame("::", nil, unix.IPPROTO_ICMPV6, 135, "fd00::2"), true, true},
		{"listener report", frame("fe80::9", alert, unix.IPPROTO_ICMPV6, 143, "::"), true, true},
		{"as itself, link-local", frame("fe80::9", nil, unix.IPPROTO_ICMPV6, 136, "fe80::9"), true, true},
		{"as itself", frame("fe80::9", nil, unix.IPPROTO_ICMPV6, 136, "fd00::2"), true, true},
	} {
		for fd, passes := range map[int]bool{port: tt.passes, routed: tt.routed} {
			_, err := unix.Write(fd, tt.frame)
			require.NoError(t, err)
			if !passes {
				spoofed++
			}
			require.Eventually(t, func() bool { return dropped() == spoofed }, 3*time.Second, 10*time.Millisecond,
				"%s, routed %v: %d drops", tt.name, fd == routed, dropped())
		}
		if tt.passes {
			passing = append(passing, tt.frame)
		}
	}
	for name, fd := range listeners {
		var got [][]byte
		for buf := make([]byte, 2048); len(got) < len(passing); {
			n, err := unix.Read(fd, buf)
			require.NoError(t, err, "%s got %d of %d", name, len(got), len(passing))
			if string(buf[6:12]) == string(mac) {
				got = append(got, append([]byte{}, buf[:n]...))
			}
		}
		require.Equal(t, passing, got, name)
	}
	require.Equal(t, spoofed, dropped())
}

func TestNFTKeepsTheRefusalOfASandboxToItself(t *testing.T) {
	begin(t)
	m := &maps{backends: []bpf.Backend{{ID: 1, Addr: netip.MustParseAddr("10.0.0.2")}}}
	tables := newNFT(m)
	for _, name := range []string{"one", "two"} {
		path := sandbox(t, name)
		cookie, err := host.Cookie(path)
		require.NoError(t, err)
		require.NoError(t, tables.PutSandbox(nft.Sandbox{Cookie: cookie, Path: path}))
	}
	taker := exec.Command("ip", "netns", "exec", "one", "nft", "-i")
	in, err := taker.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, taker.Start())
	leave := sync.OnceFunc(func() {
		in.Close()
		require.NoError(t, taker.Wait())
	})
	t.Cleanup(leave)
	fmt.Fprintln(in, "delete table inet mustang\nadd table inet mustang { flags owner; }")
	require.Eventually(t, func() bool {
		return strings.Contains(run(t, "ip netns exec one nft list ruleset"), "owner")
	}, 3*time.Second, 20*time.Millisecond)

	require.NoError(t, tables.PutService(bpf.Service{Frontend: frontend("10.96.1.1", 0, 0), ID: 1, Slots: []uint32{1}}))
	require.NoError(t, tables.Flush())
	got, err := ask("/run/netns/two", "tcp", "10.96.1.1:80")
	require.NoError(t, err)
	require.Equal(t, "10.0.0.2:80\n", got)
	require.ErrorContains(t, tables.State().Err, "write the tables of the sandbox /run/netns/one")
	leave()
	_, err = tables.Check()
	require.NoError(t, err)
	require.NoError(t, tables.State().Err)
	got, err = ask("/run/netns/one", "tcp", "10.96.1.1:80")
	require.NoError(t, err)
	require.Equal(t, "10.0.0.2:80\n", got)
	tables.Close()
}
