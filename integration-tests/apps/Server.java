import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Random;
import java.util.UUID;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicLong;

/**
 * A counter over HTTP in a JVM, with threads and memory that must survive.
 *
 * <p>GET / answers {"count", "client", "boot", "pid", "mem_ok"}. MEM_MB: megabytes to hold (16).
 */
public final class Server {
    public static void main(String[] args) throws Exception {
        String boot = UUID.randomUUID().toString();
        byte[] memory = new byte[Integer.parseInt(env("MEM_MB", "16")) << 20];
        new Random().nextBytes(memory);
        int hash = Arrays.hashCode(memory);
        AtomicLong count = new AtomicLong();

        // The backlog bounds how many clients may wait at once.
        int port = Integer.parseInt(env("PORT", "8080"));
        HttpServer server = HttpServer.create(new InetSocketAddress("::", port), 1024);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/", exchange -> {
            long number = count.incrementAndGet();
            InetSocketAddress peer = exchange.getRemoteAddress();
            String address = peer.getAddress().getHostAddress();
            String client = (address.contains(":") ? "[" + address + "]" : address) + ":" + peer.getPort();
            boolean memOk = Arrays.hashCode(memory) == hash;
            System.out.println("request " + number + " " + client);
            byte[] body = String.format(
                    "{\"count\": %d, \"client\": \"%s\", \"boot\": \"%s\", \"pid\": %d, \"mem_ok\": %b}%n",
                    number, client, boot, ProcessHandle.current().pid(), memOk)
                    .getBytes(StandardCharsets.UTF_8);
            exchange.getResponseHeaders().set("Content-Type", "application/json");
            exchange.sendResponseHeaders(200, body.length);
            try (var out = exchange.getResponseBody()) {
                out.write(body);
            }
        });
        server.start();
        System.out.println("listening on " + port);
    }

    private static String env(String name, String fallback) {
        String value = System.getenv(name);
        return value == null ? fallback : value;
    }
}
