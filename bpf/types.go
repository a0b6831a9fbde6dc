// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"strings"
)

// Protocol is an IP protocol number (IANA). ProtocolAny stands for every protocol, which the
// listings call NONE.
type Protocol uint8

// The protocols a frontend can have.
const (
	ProtocolAny Protocol = 0
	ProtocolTCP Protocol = 6
	ProtocolUDP Protocol = 17
)

// String gives the name that listings use: NONE, TCP, UDP or the number.
func (p Protocol) String() string {
	switch p {
	case ProtocolAny:
		return "NONE"
	case ProtocolTCP:
		return "TCP"
	case ProtocolUDP:
		return "UDP"
	}
	return fmt.Sprint(uint8(p))
}

// ParseProtocol reads "tcp", "udp", and "any", "none" or "" for every protocol, in any case.
func ParseProtocol(s string) (Protocol, error) {
	switch strings.ToLower(s) {
	case "", "any", "none":
		return ProtocolAny, nil
	case "tcp":
		return ProtocolTCP, nil
	case "udp":
		return ProtocolUDP, nil
	}
	return 0, fmt.Errorf("protocol %q is not supported: use tcp, udp or any", s)
}

// Frontend is the address, port and protocol at which a service is reached. Port 0 stands for every
// port, ProtocolAny for every protocol. The datapath looks for {addr, port, proto}, {addr, port, any},
// {addr, 0, any} in this order, and only if {addr, 0, any} exists: an address without that entry,
// its head, is no VIP. A head without slots refuses what no other entry serves.
type Frontend struct {
	Addr     netip.Addr
	Port     uint16 // 0 to 65535, host byte order
	Protocol Protocol
}

// Head is the entry that makes the frontend's address a VIP.
func (f Frontend) Head() Frontend { return Frontend{Addr: f.Addr} }

// Service is one frontend with its slots, as the maps hold it.
type Service struct {
	Frontend Frontend
	ID       uint32   // of the service, stable across restarts; several frontends may share it
	Network  uint32   // number of the network whose members may reach it; 0 for every sandbox and the host
	Affinity uint32   // seconds a client keeps its backend; 0 for none
	Slots    []uint32 // ids of backends; one id may fill several slots, as its weight says
	// Published says that Frontend is a port of the host's: of one of its addresses, or of all of a family
	// with the unspecified one.
	Published bool
	// Sources are who may begin flows to a published service from outside of its host, or from a container;
	// nil for everybody. Flows that have begun go on when they change.
	Sources []netip.Prefix
	Reserve []uint32 // ids of backends that take new streams while none in a slot listens, best first
}

// Backend is where flows of a service end. Port 0 keeps the port of the frontend. A backend that is
// in no slot takes no new flows but keeps those it has.
type Backend struct {
	ID          uint32
	Addr        netip.Addr
	Port        uint16
	NetnsCookie uint64 // sandbox of a container backend; 0 for any other address
}
