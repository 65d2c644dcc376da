from quintet_router.cli import main

main()
