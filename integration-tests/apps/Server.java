import com.sun.net.httpserver.HttpServer;
import java.lang.management.GarbageCollectorMXBean;
import java.lang.management.ManagementFactory;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.UUID;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.Collectors;

/**
 * A counter over HTTP in a JVM, with threads and memory that must survive.
 *
 * <p>GET / answers {"count", "client", "boot", "pid", "mem_ok", "collectors", "collections"}, the last being how often
 * the garbage collectors have run. MEM_MB: megabytes to hold (16). GARBAGE_MB: megabytes that each request allocates in
 * small pieces and drops (0).
 */
public final class Server {
    public static void main(String[] args) throws Exception {
        String boot = UUID.randomUUID().toString();
        byte[] memory = new byte[Integer.parseInt(env("MEM_MB", "16")) << 20];
        new Random().nextBytes(memory);
        int hash = Arrays.hashCode(memory);
        AtomicLong count = new AtomicLong();
        int garbage = Integer.parseInt(env("GARBAGE_MB", "0"));
        List<GarbageCollectorMXBean> collectors = ManagementFactory.getGarbageCollectorMXBeans();
        String names = collectors.stream().map(GarbageCollectorMXBean::getName).collect(Collectors.joining(", "));

        // The backlog bounds how many clients may wait at once.
        int port = Integer.parseInt(env("PORT", "8080"));
        HttpServer server = HttpServer.create(new InetSocketAddress("::", port), 1024);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/", exchange -> {
            long number = count.incrementAndGet();
            InetSocketAddress peer = exchange.getRemoteAddress();
            String address = peer.getAddress().getHostAddress();
            String client = (address.contains(":") ? "[" + address + "]" : address) + ":" + peer.getPort();
            boolean memOk = litter(garbage) && Arrays.hashCode(memory) == hash;
            long collections = collectors.stream().mapToLong(GarbageCollectorMXBean::getCollectionCount).sum();
            System.out.println("request " + number + " " + client);
            byte[] body = String.format(
                    "{\"count\": %d, \"client\": \"%s\", \"boot\": \"%s\", \"pid\": %d, \"mem_ok\": %b,"
                            + " \"collectors\": \"%s\", \"collections\": %d}%n",
                    number, client, boot, ProcessHandle.current().pid(), memOk, names, collections)
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

    /** Allocates that many megabytes, a tenth of them alive at a time; says whether they held what was written. */
    private static boolean litter(int megabytes) {
        ArrayDeque<int[]> alive = new ArrayDeque<>();
        int pieces = megabytes << 10;
        for (int number = 0; number < pieces; number++) {
            int[] piece = new int[256];
            Arrays.fill(piece, number);
            alive.addLast(piece);
            if (alive.size() > pieces / 10) {
                int[] oldest = alive.removeFirst();
                if (oldest[0] != oldest[255]) {
                    return false;
                }
            }
        }
        return true;
    }

    private static String env(String name, String fallback) {
        String value = System.getenv(name);
        return value == null ? fallback : value;
    }
}
