// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
)

// FuzzFrames sends frames that a container, or somebody outside, could make up. Whatever they are, the program ends with a
// verdict of its own, and a frame whose checksums were right has right ones after it was rewritten.
func FuzzFrames(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		a := addressesOf(v6)
		reply := tcp(a.backend, 8080, a.client, 5000, synAck)
		long := udp(a.client, 5000, a.vip, 53, "0123456789abcdef0123456789abcdef")
		first, later := long.fragments(16)
		extended := tcp(a.client, 5000, a.vip, 80, syn)
		extended.ext, extended.options = [][]byte{hopByHop, destination}, []byte{1, 1, 1, 0}
		for _, seed := range []frame{
			tcp(a.client, 5000, a.vip, 80, syn), tcp(a.client, 5000, a.vip, 81, data), long, first, later, extended, reply,
			udp(a.client, 5000, a.vip, 99, "x"), echo(a.client, a.vip, false, "ping"), udp(a.client, 5000, a.outside, 1, "x"),
			unreachable(a.backend, a.client, true, tcp(a.client, 5000, a.backend, 8080, syn).quote()),
			unreachable(a.client, a.vip, true, reply.quote()),
		} {
			f.Add(seed.macs(clientHostMAC, clientMAC).bytes(), uint8(16))
		}
		long = udp(a.outside, 5000, a.host, 53, "0123456789abcdef0123456789abcdef")
		first, later = long.fragments(16)
		for _, seed := range []frame{
			tcp(a.outside, 5000, a.host, 80, syn), tcp(a.outside, 5000, a.backend2, 80, syn), first, later, echo(a.outside, a.backend2, false, "ping"),
			tcp(a.outside, 443, a.host, 61000, synAck), unreachable(a.router, a.host, false, tcp(a.host, 61000, a.outside, 443, syn).quote()),
			unreachable(a.outside, a.host, true, tcp(a.host, 80, a.outside, 5000, synAck).quote()),
		} {
			f.Add(seed.macs(clientHostMAC, clientMAC).bytes(), uint8(16|32))
		}
		if v6 {
			f.Add(solicit(a.client, a.gateway, clientMAC).bytes(), uint8(0))
		} else {
			f.Add(append(arpRequest(a.client, a.gateway), make([]byte, 18)...), uint8(1))
		}
	}
	var ready bool
	f.Fuzz(func(t *testing.T, in []byte, how uint8) {
		if !ready { // once a process: flows that came about are part of the game
			for _, v6 := range []bool{false, true} {
				fuzzWorld(t, v6)
			}
			ready = true
		}
		if len(in) < 54 || len(in) > 2000 { // test runs want a whole IP header and less than a page
			return
		}
		in = slices.Clone(in)
		if how&16 != 0 {
			mend(in) // most mutations spoil a checksum: right ones let the rest be looked at
		}
		valid := verify(in) == nil
		ctx := []skbuff{at(clientIf, clientIf), at(backendIf, backendIf), at(clientIf, 0), at(clientIf, 99)}[how&3]
		program, c := []string{"lxc_ingress", "lxc_egress"}[how>>2&1], testDP.lxc
		if how&32 != 0 {
			program, c, ctx = "host_ingress", testDP.host, at(uplinkIf, uplinkIf)
		}
		if how&8 != 0 {
			ctx.GsoSize, ctx.GsoSegs = 1000, 2
		}
		opts := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+512), Context: ctx}
		verdict, err := c.Programs[program].Run(&opts)
		require.NoError(t, err)
		require.Contains(t, []uint32{verdictPass, verdictDrop, verdictRedirect}, verdict)
		if etherType := binary.BigEndian.Uint16(in[12:]); etherType != etherIP4 && etherType != etherIP6 && etherType != etherARP {
			require.Equal(t, in, opts.DataOut)
		}
		if verdict == verdictDrop || slices.Equal(in, opts.DataOut) || !valid {
			return
		}
		require.NoError(t, verify(opts.DataOut), "in\n%sout\n%s", dump(in), dump(opts.DataOut))
	})
}

// mend gives a packet without extension headers the checksums that its contents ask for.
func mend(b []byte) {
	p := b[14:]
	src, dst, proto, body := netip.Addr{}, netip.Addr{}, byte(0), p
	switch hlen := int(p[0]&15) * 4; {
	case binary.BigEndian.Uint16(b[12:]) == etherIP4 && p[0]>>4 == 4 && hlen >= 20 && hlen < len(p):
		length := int(binary.BigEndian.Uint16(p[2:]))
		if length < hlen || length > len(p) {
			length = len(p)
			binary.BigEndian.PutUint16(p[2:], uint16(length))
		}
		binary.BigEndian.PutUint16(p[10:], 0)
		binary.BigEndian.PutUint16(p[10:], checksum(p[:hlen]))
		src, dst, proto, body = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:])), p[9], p[hlen:length]
	case binary.BigEndian.Uint16(b[12:]) == etherIP6 && len(p) >= 40:
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		src, dst, proto, body = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:])), p[6], p[40:]
	}
	at := map[byte]int{protoTCP: 16, protoUDP: 6, protoICMP4: 2, protoICMP6: 2}[proto]
	if at == 0 || len(body) < at+2 {
		return
	}
	binary.BigEndian.PutUint16(body[at:], 0)
	sum := pseudoChecksum(src, dst, proto, body)
	if proto == protoICMP4 {
		sum = checksum(body)
	}
	if proto == protoUDP && sum == 0 {
		sum = 0xffff // zero says that there is none
	}
	binary.BigEndian.PutUint16(body[at:], sum)
}

// fuzzWorld adds one family's services to the world.
func fuzzWorld(t *testing.T, v6 bool) {
	var w *world
	if v6 {
		w = &world{TB: t, addresses: addressesOf(v6), lastBackend: 100, lastService: 100}
	} else {
		w = newWorld(t, v6)
	}
	w.web()
	w.dns()
	w.service(w.vip2, 0, ProtocolAny, w.backendAt(w.client, 0))
	w.send(fromClient(), w.request(syn))
	w.leaves(true)
	w.publish(w.host, 80, ProtocolTCP)
	w.publish(w.host, 53, ProtocolUDP)
	w.send(fromClient(), tcp(w.client, 5000, w.outside, 443, syn))
	require.NoError(t, testDP.PutEndpoint(Endpoint{
		Addr: w.backend2, IfIndex: 1004, Network: network1, Redirect: true, Open: true, MAC: backend2MAC, HostMAC: backend2HostMAC,
	}))
}
