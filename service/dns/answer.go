// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/mustang-net/mustang/service"
)

const headerSize = 12

// ednsSize is the size of the datagrams we take and, at least for who asks for more than the classic
// 512 bytes, send.
const ednsSize = 1232

// answer returns the reply to a query that is ours or malformed, or says that the engine must be asked.
// Neither means that the packet is dropped: it is no query.
func (r *resolver) answer(packet []byte, udp bool) (reply []byte, forward bool) {
	if len(packet) < headerSize || packet[2]&0x80 != 0 {
		return nil, false // an answer to an answer would go round in circles
	}
	var query dns.Msg
	if err := query.Unpack(packet); err != nil {
		r.counts[malformed].Add(1)
		return formatError(packet), false
	}
	if query.Opcode != dns.OpcodeQuery {
		return nil, true
	}
	if len(query.Question) != 1 {
		r.counts[malformed].Add(1)
		return formatError(packet), false
	}
	records, ours := r.records(query.Question[0])
	if !ours {
		return nil, true
	}
	r.counts[answered].Add(1)
	return pack(&query, records, udp), false
}

// records are what we answer a question with; ours is false where it is the engine's.
func (r *resolver) records(q dns.Question) (records []dns.RR, ours bool) {
	if q.Qclass != dns.ClassINET && q.Qclass != dns.ClassANY {
		return nil, false
	}
	if addr, ok := reverse(q.Name); ok {
		name, ok := r.names.ResolvePTR(r.sandbox.Cookie, addr)
		if ok && (q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY) {
			records = append(records, &dns.PTR{Hdr: header(q, dns.TypePTR), Ptr: dns.Fqdn(name)})
		}
		return records, ok
	}
	answer := r.names.Resolve(r.sandbox.Cookie, q.Name)
	return addresses(q, answer), answer.Known
}

// addresses are the records of an answer that a question asks for, in random order as the engine's are.
func addresses(q dns.Question, answer service.Answer) (records []dns.RR) {
	if q.Qtype == dns.TypeA || q.Qtype == dns.TypeANY {
		for _, a := range answer.Addrs4 {
			records = append(records, &dns.A{Hdr: header(q, dns.TypeA), A: a.AsSlice()})
		}
	}
	if q.Qtype == dns.TypeAAAA || q.Qtype == dns.TypeANY {
		for _, a := range answer.Addrs6 {
			records = append(records, &dns.AAAA{Hdr: header(q, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	return records
}

// header keeps the name as it was asked, since clients compare its case (0x20).
func header(q dns.Question, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: q.Name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// pack makes the reply to query, cut to what its sender can take.
func pack(query *dns.Msg, records []dns.RR, udp bool) []byte {
	var m dns.Msg
	m.SetReply(query)
	m.Authoritative, m.RecursionAvailable, m.Compress = true, true, true
	m.Answer = records
	size := dns.MaxMsgSize
	if udp {
		size = dns.MinMsgSize
	}
	if opt := query.IsEdns0(); opt != nil {
		m.SetEdns0(ednsSize, opt.Do())
		if opt.Version() != 0 {
			m.Answer, m.Rcode = nil, dns.RcodeBadVers
		}
		if udp {
			size = max(size, min(int(opt.UDPSize()), ednsSize))
		}
	}
	m.Truncate(size)
	packed, err := m.Pack()
	if err != nil {
		return nil
	}
	return packed
}

// formatError answers a query that cannot be read with its own id.
func formatError(packet []byte) []byte { return bare(packet, dns.RcodeFormatError) }

// bare is a reply of a header alone, with the id, opcode and RD of the query.
func bare(packet []byte, rcode byte) []byte {
	const qr, ra, opcodeAndRD = 0x80, 0x80, 0x79
	return []byte{packet[0], packet[1], qr | packet[2]&opcodeAndRD, ra | rcode, 0, 0, 0, 0, 0, 0, 0, 0}
}

// serverFailure answers a query that nobody else does.
func serverFailure(packet []byte) []byte {
	var query, m dns.Msg
	if err := query.Unpack(packet); err != nil {
		return bare(packet, dns.RcodeServerFailure)
	}
	m.SetRcode(&query, dns.RcodeServerFailure)
	m.RecursionAvailable = true
	packed, err := m.Pack()
	if err != nil {
		return bare(packet, dns.RcodeServerFailure)
	}
	return packed
}

// forward asks the engine and returns its reply as it is, unless that names an endpoint whose own
// names come in a moment and make the query ours.
func (r *resolver) forward(query []byte, udp bool, exchange func(context.Context, []byte) ([]byte, error)) []byte {
	ctx, cancel := context.WithTimeout(r.ctx, upstreamTimeout)
	defer cancel()
	reply, err := exchange(ctx, query)
	if err != nil {
		if r.ctx.Err() != nil {
			return nil
		}
		r.counts[failed].Add(1)
		return serverFailure(query)
	}
	if r.read(reply) {
		if own, forward := r.answer(query, udp); !forward && own != nil {
			return own
		}
	}
	r.counts[forwarded].Add(1)
	return reply
}

// read waits until the names of all endpoints in the engine's reply are known, and reports whether it
// had to.
func (r *resolver) read(reply []byte) (waited bool) {
	var m dns.Msg
	if m.Unpack(reply) != nil || m.Rcode != dns.RcodeSuccess {
		return false
	}
	var timeout <-chan time.Time
	for {
		// Taken before the look, so that no change falls between the two.
		changed := r.names.Changed()
		if !r.anyUnread(m.Answer) {
			return waited
		}
		if !waited {
			timer := time.NewTimer(unreadTimeout)
			defer timer.Stop()
			timeout, waited = timer.C, true
		}
		select {
		case <-changed:
		case <-timeout:
			return true
		case <-r.ctx.Done():
			return false
		}
	}
}

func (r *resolver) anyUnread(records []dns.RR) bool {
	for _, rr := range records {
		var addr netip.Addr
		switch rr := rr.(type) {
		case *dns.A:
			addr, _ = netip.AddrFromSlice(rr.A)
		case *dns.AAAA:
			addr, _ = netip.AddrFromSlice(rr.AAAA)
		}
		if addr.IsValid() && r.names.Unread(addr.Unmap()) {
			return true
		}
	}
	return false
}

// reverse reads the address out of a name below in-addr.arpa or ip6.arpa.
func reverse(name string) (netip.Addr, bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if digits, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		labels := strings.Split(digits, ".")
		if len(labels) != 4 {
			return netip.Addr{}, false
		}
		addr, err := netip.ParseAddr(strings.Join([]string{labels[3], labels[2], labels[1], labels[0]}, "."))
		return addr, err == nil
	}
	nibbles, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(nibbles) != 63 {
		return netip.Addr{}, false
	}
	var text strings.Builder
	for i := 62; i >= 0; i -= 2 {
		if i < 62 && nibbles[i+1] != '.' {
			return netip.Addr{}, false
		}
		text.WriteByte(nibbles[i])
		if i%8 == 0 && i > 0 {
			text.WriteByte(':')
		}
	}
	addr, err := netip.ParseAddr(text.String())
	return addr, err == nil
}
