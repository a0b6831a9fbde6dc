// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Test runs of the kernel's always have an Ethernet header: what has none must come by a real device.
func TestUplinkWithoutEthernet(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		name := map[bool]string{false: "IPv4", true: "IPv6"}[v6]
		t.Run(name+", a published port, with the client's address", func(t *testing.T) {
			w := newWorld(t, v6)
			out, inside := w.leavesByTun(), w.tapOf("mst-backend", w.backend, backendMAC, backendHostMAC)
			w.publish(everywhere(w), 80, ProtocolTCP)
			out.write(tcp(w.outside, 5000, w.host, 80, syn))
			want := tcp(w.outside, 5000, w.backend, 8080, syn).macs(backendMAC, backendHostMAC).bytes()
			require.Equal(t, dump(want), dump(inside.read()))
		})
		t.Run(name+", an answer to a masqueraded flow", func(t *testing.T) {
			w := newWorld(t, v6)
			out := w.leavesByTun()
			port := w.leavesAs(tcp(w.client, 5000, w.outside, 443, syn), func(p uint16) frame { return tcp(w.host, p, w.outside, 443, syn) })
			inside := w.tapOf("mst-client", w.client, clientMAC, clientHostMAC)
			out.write(tcp(w.outside, 443, w.host, port, synAck))
			want := tcp(w.outside, 443, w.client, 5000, synAck).macs(clientMAC, clientHostMAC).bytes()
			require.Equal(t, dump(want), dump(inside.read()))
		})
		t.Run(name+", a port without a backend", func(t *testing.T) {
			w := newWorld(t, v6)
			out := w.leavesByTun()
			w.withoutBackend(w.publish(everywhere(w), 80, ProtocolTCP))
			out.write(tcp(w.outside, 5000, w.host, 80, syn))
			want := tcp(w.host, 80, w.outside, 5000, segment{flags: flagRST | flagACK, ack: 1001})
			want.id = 0
			require.Equal(t, dump(want.macs(mac(1), mac(1)).bytes()[14:]), dump(out.read()))
			require.Equal(t, uint64(1), w.drops()["no-backend to-container"])
		})
	}
}

// wire is where a test reads and writes packets as they are.
type wire struct {
	*world
	file *os.File
	is   func(packet []byte) bool // what is not the kernel's own
}

func (l wire) read() []byte {
	l.Helper()
	buf := make([]byte, 2048)
	require.NoError(l, l.file.SetReadDeadline(time.Now().Add(5*time.Second)))
	for {
		n, err := l.file.Read(buf)
		require.NoError(l, err, "drops: %v", l.drops())
		if l.is(buf[:n]) {
			return buf[:n]
		}
	}
}

// write sends a frame without its Ethernet header.
func (l wire) write(f frame) {
	l.Helper()
	_, err := l.file.Write(f.macs(mac(1), mac(1)).bytes()[14:])
	require.NoError(l, err)
}

// leavesByTun lets what endpoints send leave, and gives the host a tun device that leads out, too.
func (w *world) leavesByTun() wire {
	w.Helper()
	w.leaves(true)
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	require.NoError(w, err)
	ifr, err := unix.NewIfreq("mst-tun")
	require.NoError(w, err)
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	require.NoError(w, unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr))
	file := os.NewFile(uintptr(fd), "mst-tun")
	w.Cleanup(func() { file.Close() })
	l, err := netlink.LinkByName("mst-tun")
	require.NoError(w, err)
	require.NoError(w, netlink.LinkSetUp(l))
	require.NoError(w, testDP.AttachLXC("mst-tun", l.Attrs().Index, IPUplinkEnd))
	w.Cleanup(func() { require.NoError(w, testDP.DetachLXC("mst-tun")) })
	protocol := map[bool]byte{false: 9, true: 6}[w.v6] // offset in the header
	return wire{w, file, func(packet []byte) bool { return packet[protocol] == protoTCP }}
}

// tapOf reads what an endpoint gets, by the other end of a pair that leads to it here.
func (w *world) tapOf(pair string, addr netip.Addr, mac, hostMAC net.HardwareAddr) wire {
	w.Helper()
	ends := [2]int{}
	for i, name := range []string{pair, pair + "-p"} {
		l, err := netlink.LinkByName(name)
		require.NoError(w, err)
		ends[i] = l.Attrs().Index
	}
	e := Endpoint{Addr: addr, IfIndex: ends[0], Network: network1, MAC: mac, HostMAC: hostMAC, Via: ends[0]}
	require.NoError(w, testDP.PutEndpoint(e))
	const all = unix.ETH_P_ALL
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(be(all)))
	require.NoError(w, err)
	require.NoError(w, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: be(all), Ifindex: ends[1]}))
	file := os.NewFile(uintptr(fd), pair)
	w.Cleanup(func() { file.Close() })
	return wire{w, file, func(frame []byte) bool { return string(frame[:6]) == string(mac) }}
}
