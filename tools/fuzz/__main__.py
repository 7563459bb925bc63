from tools.fuzz.api import main

if __name__ == "__main__":
    main()
