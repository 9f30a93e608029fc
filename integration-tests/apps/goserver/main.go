// A counter over HTTP in Go: HTTP/1.1 and HTTP/2 in clear text on PORT (8080), both over TLS on TLS_PORT (8443)
// with a throw-away certificate.
//
// GET / answers {"count", "client", "boot", "pid", "proto", "mem_ok", "procs", "collections"}, the last being how often
// the garbage collector has run. MEM_MB: megabytes to hold (16). GARBAGE_MB: megabytes that each request allocates in
// small linked pieces and drops (0); the collector then also runs over and over by itself.
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

func env(name, fallback string) string {
	if value, ok := os.LookupEnv(name); ok {
		return value
	}
	return fallback
}

// A piece of garbage that the collector has to follow.
type link struct {
	next    *link
	content [240]byte
}

// Allocates that many megabytes in a list, and says whether it can be walked from end to end.
func litter(megabytes int) bool {
	count := megabytes << 12
	var list *link
	for number := range count {
		list = &link{next: list}
		list.content[0] = byte(number)
	}
	for ; list != nil; list = list.next {
		count--
		if list.content[0] != byte(count) {
			return false
		}
	}
	return count == 0
}

func number(name, fallback string) int {
	value, err := strconv.Atoi(env(name, fallback))
	if err != nil {
		log.Fatalf("%s: %v", name, err)
	}
	return value
}

func certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Now().AddDate(10, 0, 0),
		DNSNames:     []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

func main() {
	memory := make([]byte, number("MEM_MB", "16")<<20)
	garbage := number("GARBAGE_MB", "0")
	if garbage > 0 {
		go func() {
			for {
				runtime.GC()
				time.Sleep(5 * time.Millisecond)
			}
		}()
	}
	rand.Read(memory)
	sum := sha256.Sum256(memory)
	id := make([]byte, 8)
	rand.Read(id)
	boot := hex.EncodeToString(id)
	var count atomic.Int64

	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		number := count.Add(1)
		fmt.Printf("request %d %s\n", number, r.RemoteAddr)
		whole := litter(garbage)
		now := sha256.Sum256(memory)
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{
			"count":       number,
			"client":      r.RemoteAddr,
			"boot":        boot,
			"pid":         os.Getpid(),
			"proto":       r.Proto,
			"mem_ok":      whole && bytes.Equal(sum[:], now[:]),
			"procs":       runtime.GOMAXPROCS(0),
			"collections": stats.NumGC,
		})
	})

	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	cert, err := certificate()
	if err != nil {
		log.Fatalf("certificate: %v", err)
	}
	plain := &http.Server{Addr: ":" + env("PORT", "8080"), Handler: handler, Protocols: &protocols}
	secure := &http.Server{
		Addr:      ":" + env("TLS_PORT", "8443"),
		Handler:   handler,
		Protocols: &protocols,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
	}
	// Both listen before it says so.
	listen := func(server *http.Server) net.Listener {
		listener, err := net.Listen("tcp", server.Addr)
		if err != nil {
			log.Fatalf("listen: %v", err)
		}
		return listener
	}
	secureListener, plainListener := listen(secure), listen(plain)
	go func() { log.Fatal(secure.ServeTLS(secureListener, "", "")) }()
	go func() { log.Fatal(plain.Serve(plainListener)) }()
	fmt.Println("listening on", plainListener.Addr())

	// The first process of a container ignores SIGTERM unless it asks for it.
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	<-term
	fmt.Println("terminated")
}
